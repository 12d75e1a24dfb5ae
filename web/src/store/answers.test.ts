import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { api, ApiError, OfflineError, type ChatBody, type ChatEvent } from "../api/client";
import * as client from "../api/client";
import type { Conversation, Message, Model } from "../api/types";
import { errorOf, useAnswers } from "./answers";
import { beginConversation, change, useChats } from "./chats";
import { saveSoon } from "./outbox";
import { isPending } from "./pending";
import { NO_SETTINGS, usePreferences } from "./preferences";
import { useSession } from "./session";

const model = { id: "tiny", title: "Tiny", served: true, state: "loaded", input_modalities: ["text"] } as unknown as Model;

/** What was asked, and how the answers come. */
const bodies: ChatBody[] = [];
let answer: (body: ChatBody, signal: AbortSignal) => AsyncGenerator<ChatEvent>;

async function* says(...texts: string[]): AsyncGenerator<ChatEvent> {
  for (const text of texts) yield { text };
  yield { finish: "stop" };
  yield { usage: { prompt_tokens: 5, completion_tokens: texts.length } };
}

async function* untilStopped(text: string, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  yield { text };
  await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error)));
}

beforeEach(() => {
  bodies.length = 0;
  answer = () => says("Hel", "lo");
  useSession.setState({ models: [model], chosen: "tiny", refresh: () => Promise.resolve(null), refreshSoon: () => undefined });
  usePreferences.setState({ defaults: NO_SETTINGS, areDefaultsKnown: true });
  vi.spyOn(client, "streamChat").mockImplementation((body, signal) => {
    bodies.push(body);
    return answer(body, signal);
  });
  vi.spyOn(api, "createConversation").mockImplementation((made) => Promise.resolve({ ...made, created: 1, updated: 1 } as Conversation));
  vi.spyOn(api, "saveMessages").mockImplementation((id) => Promise.resolve({ id, title: held(id).title, created: 1, updated: 2 }));
  vi.spyOn(api, "patchConversation").mockImplementation((id) => Promise.resolve({ id, title: "", created: 1, updated: 2 }));
});
afterEach(() => { useChats.setState({ held: {}, current: null, unsaved: new Set() }); });

const held = (id: string): Conversation => useChats.getState().held[id] as Conversation;
const texts = (id: string): string[] => held(id).messages.map(({ text }) => text);
const last = (id: string): Message => held(id).messages.at(-1) as Message;
const ended = (id: string) => vi.waitFor(() => expect(useAnswers.getState().running[id]).toBeUndefined());

/** What the server says of its models, a little later. */
async function learn(): Promise<null> {
  await Promise.resolve();
  useSession.setState({ models: [model], chosen: "tiny" });
  return null;
}

async function asked(text: string): Promise<string> {
  const { id } = beginConversation();
  expect(await useAnswers.getState().send(id, text, [])).toBeNull();
  await ended(id);
  return id;
}

describe("send", () => {
  it("keeps question and answer, and names the conversation", async () => {
    const id = await asked("Hi there\nyou");
    expect(texts(id)).toEqual(["Hi there\nyou", "Hello"]);
    expect(held(id)).toMatchObject({ title: "Hi there", leaf: last(id).id, settings: { model: "tiny" } });
    expect(last(id)).toMatchObject({ status: "done", model: "tiny", stats: { prompt_tokens: 5, completion_tokens: 2 } });
    expect(useChats.getState().unsaved.has(id)).toBe(false);
    expect(bodies).toEqual([{ model: "tiny", messages: [{ role: "user", content: "Hi there\nyou" }] }]);
    expect(useAnswers.getState().live).toEqual({});
  });

  it("waits until the models are known", async () => {
    useSession.setState({ models: [], chosen: null, refresh: learn });
    expect(texts(await asked("Hi"))).toEqual(["Hi", "Hello"]);
    expect(bodies).toMatchObject([{ model: "tiny" }]);
  });

  it("waits until the settings of new conversations are known", async () => {
    usePreferences.setState({ areDefaultsKnown: false });
    const sampling = { ...NO_SETTINGS.sampling, max_tokens: 7 };
    vi.spyOn(api, "settings").mockResolvedValue({ model: "other", system: "Be brief.", sampling });
    useSession.setState({ models: [model, { ...model, id: "other" }] });
    const id = await asked("Hi");
    expect(bodies).toMatchObject([{ model: "other", max_tokens: 7, messages: [{ content: "Be brief." }, { content: "Hi" }] }]);
    expect(held(id).settings).toMatchObject({ model: "other", sampling: { max_tokens: 7 } });
  });

  it("is not sent with settings that are not the person's", async () => {
    usePreferences.setState({ areDefaultsKnown: false });
    const reason = new ApiError("The database is busy", 503, "storage_busy");
    vi.spyOn(api, "settings").mockRejectedValue(reason);
    const { id } = beginConversation();
    expect(await useAnswers.getState().send(id, "Hi", [])).toBe(reason);
    expect(held(id)).toMatchObject({ messages: [], leaf: null });
    expect(bodies).toEqual([]);
  });

  it("keeps settings that were made before the others were known", async () => {
    usePreferences.setState({ areDefaultsKnown: false });
    vi.spyOn(api, "settings").mockResolvedValue({ ...NO_SETTINGS, system: "Be brief." });
    const { id } = beginConversation();
    await useChats.getState().saveSettings({ system: "Sing." }, id);
    await useAnswers.getState().send(id, "Hi", []);
    await ended(id);
    expect(bodies).toMatchObject([{ messages: [{ content: "Sing." }, { content: "Hi" }] }]);
  });

  it("loses no question that comes while another waits", async () => {
    useSession.setState({ models: [], chosen: null, refresh: learn });
    const { id } = beginConversation();
    const { send } = useAnswers.getState();
    const said = await Promise.all([send(id, "First", []), send(id, "Second", [])]);
    expect(said).toMatchObject([null, { code: "conversation_busy" }]);
    await ended(id);
    expect(texts(id)).toEqual(["First", "Hello"]);
  });

  it("takes the conversation as it is when the models are known", async () => {
    const other = { ...model, id: "other" };
    const { id } = beginConversation();
    const refresh = () => {
      change(id, (each) => ({ ...each, title: "My name", settings: { ...each.settings, model: "other" } }));
      useSession.setState({ models: [model, other], chosen: "tiny" });
      return Promise.resolve(null);
    };
    useSession.setState({ models: [], chosen: null, refresh });
    expect(await useAnswers.getState().send(id, "Hi", [])).toBeNull();
    await ended(id);
    expect(held(id)).toMatchObject({ title: "My name", settings: { model: "other" } });
    expect(bodies).toMatchObject([{ model: "other" }]);
  });

  it.each([new OfflineError(), new ApiError("Who are you?", 401, "invalid_api_key"), null])(
    "says why no model is known, and leaves nothing behind: %s",
    async (reason) => {
      useSession.setState({ models: [], chosen: null, refresh: () => Promise.resolve(reason) });
      const { id } = beginConversation();
      const said = await useAnswers.getState().send(id, "Hi", []);
      if (reason) expect(said).toBe(reason);
      else expect(said).toMatchObject({ code: "model_not_found" });
      expect(held(id)).toMatchObject({ messages: [], leaf: null });
    },
  );

  it("asks nothing in a conversation that was deleted while it waited", async () => {
    const { id } = beginConversation();
    const refresh = () => {
      useChats.setState({ held: {} });
      useSession.setState({ models: [model], chosen: "tiny" });
      return Promise.resolve(null);
    };
    useSession.setState({ models: [], chosen: null, refresh });
    expect(await useAnswers.getState().send(id, "Hi", [])).toBeInstanceOf(ApiError);
    expect(bodies).toEqual([]);
  });

  it("leaves nothing behind when the server is away", async () => {
    vi.mocked(api.createConversation).mockRejectedValue(new OfflineError());
    const { id } = beginConversation();
    expect(await useAnswers.getState().send(id, "Hi", [])).toBeInstanceOf(OfflineError);
    expect(held(id)).toMatchObject({ messages: [], leaf: null });
    expect(useAnswers.getState().running).toEqual({});
  });

  it("says why there is no answer, and keeps what has come of it", async () => {
    answer = async function* broken() {
      yield { text: "Hel" };
      throw new ApiError("Too long.", 400, "context_length_exceeded");
    };
    const id = await asked("Hi");
    expect(last(id)).toMatchObject({ status: "error", text: "Hel", error: "[context_length_exceeded] Too long." });
    expect(errorOf(last(id))).toMatchObject({ code: "context_length_exceeded", message: "Too long." });
  });

  it("waits for a model that is fetched", async () => {
    vi.useFakeTimers({ shouldAdvanceTime: true, advanceTimeDelta: 400 });
    answer = async function* loading() {
      answer = () => says("Here.");
      throw new ApiError("Later.", 503, "model_loading");
    };
    const id = await asked("Hi");
    vi.useRealTimers();
    expect(bodies).toHaveLength(2);
    expect(last(id)).toMatchObject({ text: "Here.", status: "done" });
  });
});

describe("versions", () => {
  it("of an answer come by asking the same again", async () => {
    const id = await asked("Hi");
    const first = last(id);
    answer = () => says("Hey");
    await useAnswers.getState().regenerate(id, first.id);
    expect(last(id)).toMatchObject({ text: "Hey", parent: first.parent });
    expect(bodies[1]).toEqual(bodies[0]);
    useAnswers.getState().chooseVersion(id, first.id);
    expect(held(id).leaf).toBe(first.id);
  });

  it("of a question have their own answers", async () => {
    const id = await asked("Hi");
    const question = held(id).messages[0] as Message;
    await useAnswers.getState().edit(id, question.id, "Hallo", []);
    await ended(id);
    expect(texts(id)).toEqual(["Hi", "Hello", "Hallo", "Hello"]);
    expect(bodies[1]?.messages).toEqual([{ role: "user", content: "Hallo" }]);
  });
});

describe("an answer that was stopped", () => {
  it("keeps its text, and goes on from there", async () => {
    answer = (_, signal) => untilStopped("Hel", signal);
    const { id } = beginConversation();
    await useAnswers.getState().send(id, "Hi", []);
    await vi.waitFor(() => expect(useAnswers.getState().running[id]?.stage).toBe("writing"));
    useAnswers.getState().stop(id);
    await ended(id);
    expect(last(id)).toMatchObject({ status: "stopped", text: "Hel" });
    answer = () => says("lo");
    await useAnswers.getState().continueAnswer(id, last(id).id);
    expect(last(id)).toMatchObject({ status: "done", text: "Hello" });
    expect(bodies[1]).toMatchObject({ continue_final_message: true, messages: [{}, { role: "assistant", content: "Hel" }] });
  });

  it("because its conversation was deleted is not asked for any more", async () => {
    let isAborted = false;
    answer = (_, signal) => {
      signal.addEventListener("abort", () => { isAborted = true; });
      return untilStopped("Hel", signal);
    };
    vi.spyOn(api, "deleteConversation").mockResolvedValue();
    const { id } = beginConversation();
    await useAnswers.getState().send(id, "Hi", []);
    await vi.waitFor(() => expect(useAnswers.getState().running[id]?.stage).toBe("writing"));
    await useChats.getState().remove(id);
    expect(isAborted).toBe(true);
  });
});

describe("what the server does not have yet", () => {
  it("is tried again when the server is busy, not when it will not have it", async () => {
    vi.useFakeTimers({ shouldAdvanceTime: true, advanceTimeDelta: 400 });
    const id = await asked("Hi");
    const save = vi.mocked(api.saveMessages);
    const done = save.getMockImplementation()!;
    save.mockReset().mockRejectedValueOnce(new ApiError("Busy.", 503, "storage_busy")).mockImplementation(done);
    useAnswers.getState().chooseVersion(id, last(id).id);
    saveSoon(id, [last(id).id]);
    await vi.waitFor(() => expect(save).toHaveBeenCalledTimes(2), 9000);
    await vi.waitFor(() => expect(isPending(id)).toBe(false), 9000);
    save.mockReset().mockRejectedValueOnce(new ApiError("Too large.", 413, "body_too_large")).mockImplementation(done);
    saveSoon(id, [last(id).id]);
    await vi.waitFor(() => expect(isPending(id)).toBe(false), 9000);
    expect(save).toHaveBeenCalledTimes(1);
    vi.useRealTimers();
  });

  it("is not overwritten by the server's older copy", async () => {
    const id = await asked("Hi");
    const fetch = vi.spyOn(api, "conversation").mockResolvedValue({ ...held(id), messages: [] });
    saveSoon(id, [last(id).id]);
    await useChats.getState().open(id);
    expect(fetch).not.toHaveBeenCalled();
    expect(texts(id)).toEqual(["Hi", "Hello"]);
    await vi.waitFor(() => expect(isPending(id)).toBe(false), 9000);
    await useChats.getState().open(id);
    expect(fetch).toHaveBeenCalled();
  }, 15_000);

  it("comes before the answer that is asked for again", async () => {
    const id = await asked("Hi");
    vi.mocked(api.saveMessages).mockClear();
    await useAnswers.getState().regenerate(id, last(id).id);
    const [, messages, leaf] = vi.mocked(api.saveMessages).mock.calls[0]!;
    expect(messages).toMatchObject([{ id: leaf, text: "", status: "streaming" }]);
  });
});

describe("a conversation that is deleted", () => {
  it("takes nothing along that came meanwhile, and no question goes into it", async () => {
    const gone = await asked("Old");
    let answerDelete = (): void => undefined;
    vi.spyOn(api, "deleteConversation").mockImplementation(() => new Promise<void>((resolve) => { answerDelete = resolve; }));
    const deleting = useChats.getState().remove(gone);
    const id = await asked("New");
    answerDelete();
    await deleting;
    expect(texts(id)).toEqual(["New", "Hello"]);
    expect(await useAnswers.getState().send(gone, "Lost?", [])).toBeInstanceOf(ApiError);
  });
});
