import { expect, test } from "vitest";
import type { Model } from "../api/types";
import { isEnglishOnly, memoryOf, planText, sightKey, stateKey } from "./describe";

const GiB = 2 ** 30;
const model = (change: Partial<Model>): Model => ({
  id: "m", title: "M", served: true, installed: true, shipped: false, download_bytes: 0, state: "unloaded",
  progress: null, status: null, max_model_len: null, input_modalities: ["text"], memory_bytes: null,
  plan: null, sampling: null, languages: null, ...change,
});
const plan = (least: number, good: number, budget = 8) => (
  { fits: least <= budget, least_bytes: least * GiB, good_bytes: good * GiB, budget_bytes: budget * GiB });

test("what a model sees and is", () => {
  expect(sightKey(model({}))).toBe("textOnly");
  expect(sightKey(model({ input_modalities: ["text", "image"] }))).toBe("seesPictures");
  expect(sightKey(model({ input_modalities: ["text", "image", "video"] }))).toBe("seesVideos");
  expect(isEnglishOnly(model({ languages: ["en"] }))).toBe(true);
  expect(isEnglishOnly(model({ languages: ["en", "zh"] }))).toBe(false);
  expect(isEnglishOnly(model({}))).toBe(false);
  expect(stateKey(model({}))).toBe("stateUnloaded");
  expect(stateKey(model({ served: false }))).toBe("stateInstalled");
  expect(stateKey(model({ served: false, state: "absent" }))).toBe("stateAbsent");
});

test("what it needs of what there is", () => {
  expect(planText(model({}))).toBeNull();
  expect(planText(model({ plan: plan(1, 1) }))?.key).toBe("needs");
  expect(planText(model({ plan: plan(4, 4.75) }))).toEqual({
    key: "needsGood", values: { least: "4 GiB", good: "4.75 GiB", budget: "8 GiB" },
  });
  expect(planText(model({ plan: plan(15.2, 17) }))?.key).toBe("needsTooMuch");
  expect(memoryOf([model({})])).toBeNull();
  expect(memoryOf([model({ plan: plan(1, 1), memory_bytes: GiB }), model({ memory_bytes: 2 * GiB })]))
    .toEqual({ used: 3 * GiB, budget: 8 * GiB });
});
