import { beforeEach, expect, test, vi } from "vitest";
import { ApiError, OfflineError, api } from "../api/client";
import type { Model } from "../api/types";
import { readiest, sees, useSession } from "./session";

const model = (id: string, change: Partial<Model> = {}): Model => ({
  id, title: id, served: true, installed: true, shipped: false, download_bytes: 0, state: "unloaded", progress: null,
  status: null, max_model_len: null, input_modalities: ["text"], memory_bytes: null, plan: null, sampling: null,
  languages: null, ...change,
});
const answer = (...models: Model[]) => vi.spyOn(api, "status").mockResolvedValue({ version: "1", can_pull: true, models });
const refresh = () => useSession.getState().refresh();

beforeEach(() => {
  localStorage.clear();
  useSession.setState(useSession.getInitialState());
});

test("at first the model that answers soonest is chosen, then the one that was chosen last", async () => {
  answer(model("a"), model("b", { state: "loaded" }), model("c", { served: false }));
  await refresh();
  expect(useSession.getState()).toMatchObject({ status: "online", chosen: "b", canPull: true });

  useSession.getState().choose("a");
  await refresh();
  expect(useSession.getState().chosen).toBe("a");

  useSession.setState({ chosen: null }); // a reload
  await refresh();
  expect(useSession.getState().chosen).toBe("a");
});

test("a model that is no longer served, or failed, is not chosen by itself", async () => {
  localStorage.setItem("shuzhai.model", "a");
  answer(model("a", { state: "failed" }), model("b"));
  await refresh();
  expect(useSession.getState().chosen).toBe("b");
  answer(model("a", { state: "failed" }));
  await refresh();
  expect(useSession.getState().chosen).toBe("a");
});

test("a server that is away, locked or troubled is told apart", async () => {
  answer(model("a"));
  await refresh();
  const ask = vi.spyOn(api, "status");
  ask.mockRejectedValue(new OfflineError());
  expect(await refresh()).toBeInstanceOf(OfflineError);
  expect(useSession.getState()).toMatchObject({ status: "offline", chosen: "a" });
  ask.mockRejectedValue(new ApiError("no", 401));
  await refresh();
  expect(useSession.getState().status).toBe("locked");
  ask.mockRejectedValue(new ApiError("disk full", 500));
  await refresh();
  expect(useSession.getState()).toMatchObject({ status: "online", problem: "disk full" });
  answer(model("a"));
  expect(await refresh()).toBeNull();
  expect(useSession.getState()).toMatchObject({ status: "online", problem: null });
});

test("who sees, and who is readiest", () => {
  expect(sees(model("a"))).toBe(false);
  expect(sees(undefined)).toBe(false);
  expect(sees(model("a", { input_modalities: ["text", "image"] }))).toBe(true);
  const models = [model("a", { state: "failed" }), model("b"), model("c", { state: "loading" })];
  expect(readiest(models)?.id).toBe("c");
  expect(readiest([])).toBeUndefined();
});
