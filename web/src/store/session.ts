import { create } from "zustand";
import { ApiError, api } from "../api/client";
import type { Model } from "../api/types";

export type Connection = "connecting" | "online" | "offline" | "locked";

interface Session {
  status: Connection; // locked: the server wants an API key, and nobody has given one
  problem: string | null; // the server answers, but with this
  version: string | null;
  models: Model[];
  canPull: boolean;
  chosen: string | null; // the id of the model that the next question goes to
  refresh: () => Promise<Error | null>; // why nothing new is known
  refreshSoon: () => void;
  choose: (id: string) => void;
}

const KEY = "shuzhai.model";
const READINESS = ["loaded", "loading", "unloaded"] as const; // the likeliest to answer soon first

export const useSession = create<Session>((set, get) => ({
  status: "connecting",
  problem: null,
  version: null,
  models: [],
  canPull: false,
  chosen: null,

  async refresh() {
    try {
      const { version, can_pull, models } = await api.status();
      const chosen = stillGood(get().chosen, models) ?? firstChoice(models);
      set({ status: "online", problem: null, version, canPull: can_pull, models, chosen });
      return null;
    } catch (error) {
      if (!(error instanceof ApiError)) set({ status: "offline" });
      else if (error.status === 401) set({ status: "locked" });
      else set({ status: "online", problem: error.message });
      return error as Error;
    }
  },

  refreshSoon() {
    wake();
  },

  choose(id) {
    localStorage.setItem(KEY, id);
    set({ chosen: id });
  },
}));

function stillGood(id: string | null, models: Model[]): string | null {
  return models.some((model) => model.id === id && model.served) ? id : null;
}

function firstChoice(models: Model[]): string | null {
  const remembered = models.find((model) => model.id === localStorage.getItem(KEY));
  if (remembered?.served && remembered.state !== "failed") return remembered.id;
  return readiest(models)?.id ?? models.find((model) => model.served)?.id ?? null;
}

/** Of these, the one that would answer soonest. */
export function readiest(models: Model[]): Model | undefined {
  const served = models.filter((model) => model.served);
  return READINESS.flatMap((state) => served.filter((model) => model.state === state))[0];
}

export function sees(model: Model | undefined): boolean {
  return model?.input_modalities.includes("image") ?? false;
}

/** The model that the next question goes to. */
export function useChosen(): Model | undefined {
  return useSession(({ models, chosen }) => models.find(({ id }) => id === chosen));
}

// Whether the server is there is asked now and then; often while something happens.
const IDLE_SECONDS = 20;
const BUSY_SECONDS = 0.7;
const AWAY_SECONDS = 3;

let timer: ReturnType<typeof setTimeout> | undefined;
let asking = false;
let again = false; // what is being answered may be older than what has just been done

function lookIn(seconds: number): void {
  clearTimeout(timer);
  timer = setTimeout(() => void look(), seconds * 1000);
}

function wake(): void {
  again = asking;
  if (!asking) lookIn(0.05);
}

async function look(): Promise<void> {
  if (asking) return;
  asking = true;
  await useSession.getState().refresh();
  asking = false;
  const { status, models } = useSession.getState();
  if (status === "locked") return;
  const isBusy = again || models.some((model) => model.state === "loading");
  again = false;
  if (document.hidden && !isBusy) return;
  lookIn(status === "offline" ? AWAY_SECONDS : isBusy ? BUSY_SECONDS : IDLE_SECONDS);
}

/** Keep the session up to date until the function that this gives is called. */
export function followServer(): () => void {
  const seen = () => {
    if (!document.hidden && useSession.getState().status !== "locked") wake();
  };
  void look();
  addEventListener("online", wake);
  addEventListener("offline", wake);
  document.addEventListener("visibilitychange", seen);
  return () => {
    clearTimeout(timer);
    removeEventListener("online", wake);
    removeEventListener("offline", wake);
    document.removeEventListener("visibilitychange", seen);
  };
}
