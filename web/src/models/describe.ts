import type { Model } from "../api/types";
import { formatBytes } from "../shell/format";
import { sees } from "../store/session";

/** Keys of the texts of `models`. */
export type SightKey = "seesPictures" | "seesVideos" | "textOnly";
export type StateKey =
  | "stateLoaded" | "stateLoading" | "stateUnloaded" | "stateFailed" | "stateAbsent" | "stateInstalled";

export function sightKey(model: Model): SightKey {
  if (model.input_modalities.includes("video")) return "seesVideos";
  return sees(model) ? "seesPictures" : "textOnly";
}

export function stateKey({ state, served }: Model): StateKey {
  if (state === "unloaded" && !served) return "stateInstalled";
  const keys = {
    loaded: "stateLoaded",
    loading: "stateLoading",
    unloaded: "stateUnloaded",
    failed: "stateFailed",
    absent: "stateAbsent",
  } as const;
  return keys[state];
}

export function isEnglishOnly({ languages }: Model): boolean {
  return languages?.length === 1 && languages[0] === "en";
}

export interface PlanText {
  key: "needs" | "needsGood" | "needsTooMuch";
  values: { least: string; good: string; budget: string };
}

export function planText({ plan }: Model): PlanText | null {
  if (!plan) return null;
  const { fits, least_bytes: least, good_bytes: good, budget_bytes: budget } = plan;
  const key = !fits ? "needsTooMuch" : good > least ? "needsGood" : "needs";
  return { key, values: { least: formatBytes(least), good: formatBytes(good), budget: formatBytes(budget) } };
}

export interface Memory {
  used: number;
  budget: number;
}

/** What the loaded models take of what all may take. */
export function memoryOf(models: Model[]): Memory | null {
  const budget = models.find((model) => model.plan)?.plan?.budget_bytes;
  if (!budget) return null;
  const used = models.reduce((sum, model) => sum + (model.memory_bytes ?? 0), 0);
  return { used, budget };
}
