// Answers under way: asked for, streamed into their conversation, saved as they grow.

import { create } from "zustand";

import { ApiError, OfflineError, streamChat, type ChatBody, type ChatEvent, type Usage } from "../api/client";
import { newId } from "../api/ids";
import { chatBody } from "../api/request";
import type { Conversation, Message, MessageStatus, Picture } from "../api/types";
import { leafBelow, path, titleOf } from "../tree";
import { change, loadDefaults, modelOf, putMessage, saveConversation, useChats } from "./chats";
import { saveAtEnd, saveNow, saveSoon } from "./outbox";
import { usePreferences } from "./preferences";
import { useSession } from "./session";
import { statsOf } from "./stats";

export interface Running {
  message: string; // the id of the answer
  stage: "saving" | "waiting" | "writing";
}

interface Answers {
  running: Record<string, Running>; // by conversation: one answer at a time in each
  live: Record<string, string>; // the texts of answers that grow, by message; their conversations follow
  lastEnded: Message | null; // for those who listen

  /** Asks; gives the reason if the question could not be brought to the server, and is not there. */
  send(id: string, text: string, pictures: Picture[]): Promise<Error | null>;
  /** A new version of a question, and its answer. */
  edit(id: string, messageId: string, text: string, pictures: Picture[]): Promise<Error | null>;
  /** A new version of an answer, by the model that is chosen now. */
  regenerate(id: string, messageId: string): Promise<void>;
  continueAnswer(id: string, messageId: string): Promise<void>;
  stop(id: string): void;
  chooseVersion(id: string, messageId: string): void;
}

export const useAnswers = create<Answers>((_, get) => ({
  running: {},
  live: {},
  lastEnded: null,

  async send(id, text, pictures) {
    const conversation = useChats.getState().held[id];
    if (!conversation) return gone();
    const parent = path(conversation.messages, conversation.leaf).at(-1)?.id ?? null;
    return ask(id, message({ parent, role: "user", text, pictures }));
  },

  async edit(id, messageId, text, pictures) {
    const { conversation, old } = find(id, messageId);
    if (!conversation || !old) return gone();
    return ask(id, message({ parent: old.parent, role: "user", text, pictures }));
  },

  async regenerate(id, messageId) {
    const { conversation, old } = find(id, messageId);
    if (!conversation || !old) return;
    const known = await modelToAsk(id);
    if (get().running[id]) return;
    const model = known instanceof Error ? null : known;
    const answer = message({ parent: old.parent, role: "assistant", model, status: "streaming" });
    change(id, (each) => ({ ...each, messages: [...each.messages, answer], leaf: answer.id }));
    const controller = start(id, answer, "saving");
    // The server must know the leaf before other messages' saves name it.
    await saveNow(id, [answer.id]).catch(() => saveSoon(id, [answer.id]));
    await stream(id, answer, controller);
  },

  async continueAnswer(id, messageId) {
    await modelToAsk(id);
    const { old } = find(id, messageId);
    if (!old || get().running[id]) return;
    const answer: Message = { ...old, status: "streaming", error: null };
    putMessage(id, answer);
    await stream(id, answer);
  },

  stop(id) {
    controllers.get(id)?.abort();
  },

  chooseVersion(id, messageId) {
    change(id, (each) => ({ ...each, leaf: leafBelow(each.messages, messageId) }));
    saveSoon(id);
  },
}));

const controllers = new Map<string, AbortController>(); // of what runs, by conversation

// A conversation that was deleted needs no answer.
useChats.subscribe(({ held }) => {
  for (const [id, controller] of controllers) if (!held[id]) controller.abort();
});

// The browser breaks streams off when the page is left: no fault of the server's.
let isLeaving = false;
addEventListener("pagehide", () => {
  isLeaving = true;
  for (const writer of writers) writer.keep();
  saveAtEnd();
});
addEventListener("pageshow", () => { isLeaving = false; });

function find(id: string, messageId: string): { conversation?: Conversation; old?: Message } {
  const conversation = useChats.getState().held[id];
  return { conversation, old: conversation?.messages.find((each) => each.id === messageId) };
}

/** Deleted meanwhile: nothing is asked in it, and the question stays where it was written. */
const gone = (): Error => new ApiError("this conversation is not there any more", 404, "conversation_not_found");

function message(known: Pick<Message, "parent" | "role"> & Partial<Message>): Message {
  return {
    id: newId(), text: "", pictures: [], created: Date.now() / 1000, model: null, status: "done",
    error: null, stats: null, ...known,
  };
}

function currentModel(conversation: Conversation): string | null {
  const { models, chosen } = useSession.getState();
  return modelOf(conversation, models, chosen)?.id ?? null;
}

/** The same for a question that may come before the server was first heard of; or why there is none. */
async function modelToAsk(id: string): Promise<string | Error> {
  const model = (): string | null => {
    const conversation = useChats.getState().held[id];
    return conversation ? currentModel(conversation) : null;
  };
  const known = model();
  if (known !== null) return known;
  const error = await useSession.getState().refresh();
  return model() ?? error ?? new ApiError("no model is served", 404, "model_not_found");
}

/** A question that comes before the settings of new conversations waits for them; or why they are not known. */
async function settingsToAskWith(id: string): Promise<Error | null> {
  if (usePreferences.getState().areDefaultsKnown || !useChats.getState().unsaved.has(id)) return null;
  return loadDefaults().then(() => null, (error: Error) => error);
}

async function ask(id: string, question: Message): Promise<Error | null> {
  const error = await settingsToAskWith(id);
  if (error) return error;
  const model = await modelToAsk(id);
  const before = useChats.getState().held[id];
  if (!before) return gone();
  if (model instanceof Error) return model;
  if (useAnswers.getState().running[id]) {
    return new ApiError("another question of this conversation is being answered", 409, "conversation_busy");
  }
  const answer = message({ parent: question.id, role: "assistant", model, status: "streaming" });
  const title = before.title || titleOf(question.text) || question.pictures[0]?.name || "";
  change(id, (each) => ({
    ...each, title, settings: { ...each.settings, model },
    messages: [...each.messages, question, answer], leaf: answer.id,
  }));
  const controller = start(id, answer, "saving");
  try {
    await saveConversation(id);
    await saveNow(id, [question.id, answer.id]);
  } catch (error) {
    finish(id);
    change(id, (each) => ({
      ...each, leaf: before.leaf,
      messages: each.messages.filter((one) => one !== question && one !== answer),
    }));
    return error as Error;
  }
  void stream(id, answer, controller);
  return null;
}

function start(id: string, answer: Message, stage: Running["stage"]): AbortController {
  const controller = new AbortController();
  controllers.set(id, controller);
  setRunning(id, { message: answer.id, stage });
  return controller;
}

function finish(id: string): void {
  controllers.delete(id);
  setRunning(id, null);
}

function setRunning(id: string, next: Running | null): void {
  const { [id]: _, ...others } = useAnswers.getState().running;
  useAnswers.setState({ running: next ? { ...others, [id]: next } : others });
}

/** Streams into `answer`, behind the text that it has. */
async function stream(
  id: string, answer: Message, controller = start(id, answer, "waiting"),
): Promise<void> {
  const conversation = useChats.getState().held[id];
  if (!conversation) return finish(id);
  setRunning(id, { message: answer.id, stage: "waiting" });
  const model = answer.text ? servedOr(answer.model, conversation) : answer.model;
  const branch = path(conversation.messages, answer.id);
  const asked = answer.text ? branch : branch.slice(0, -1);
  const writer = new Writer(id, answer);
  try {
    const events = whenLoaded(chatBody(model ?? "", conversation.settings, asked), controller.signal);
    for await (const event of events) writer.take(event);
    writer.end(writer.finish === "length" ? "length" : "done");
  } catch (error) {
    if (controller.signal.aborted || isLeaving) writer.end("stopped");
    else writer.end("error", describe(error));
  }
  finish(id);
  useSession.getState().refreshSoon(); // what is loaded may have changed
}

/** An answer goes on with its own model while that is there. */
function servedOr(model: string | null, conversation: Conversation): string | null {
  const isServed = useSession.getState().models.some((each) => each.id === model && each.served);
  return isServed ? model : currentModel(conversation);
}

/** The code stands in front, for those who read another language than the server writes. */
function describe(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  if (error instanceof OfflineError) return `[offline] ${text}`;
  return error instanceof ApiError && error.code ? `[${error.code}] ${text}` : text;
}

/** The error that an answer ended in, as it was. */
export function errorOf({ error }: Message): Error | null {
  if (error === null) return null;
  const [, code = null, text = error] = /^\[(\w+)\] ([^]*)$/.exec(error) ?? [];
  return code === "offline" ? new OfflineError() : new ApiError(text, 0, code);
}

/** The server keeps nobody's question while a model is downloaded, which may take hours: it waits here. */
async function* whenLoaded(body: ChatBody, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  for (;;) {
    try {
      yield* streamChat(body, signal);
      return;
    } catch (error) {
      if (!(error instanceof ApiError && error.code === "model_loading")) throw error;
    }
    await isFetched(body.model, signal);
  }
}

async function isFetched(model: string, signal: AbortSignal): Promise<void> {
  for (let isLoading = true; isLoading;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
    await useSession.getState().refresh();
    const { models } = useSession.getState();
    isLoading = models.some(({ id, state }) => id === model && state === "loading");
  }
}

const LOOK_MS = 500;
const HIDDEN_MS = 250; // there are no frames in a tab that is not seen

const KEEP_MS = 500;
const writers = new Set<Writer>(); // of answers under way

/** Shows an answer's text as it grows, at most once a frame; puts it into its conversation now and
 * then, and at its end. */
class Writer {
  finish: ChatEvent["finish"];
  private message: Message;
  private readonly before: Message;
  private text: string;
  private usage: Usage | null = null;
  private asked = performance.now();
  private first = 0;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private keeper: ReturnType<typeof setTimeout> | undefined;
  private readonly look: ReturnType<typeof setTimeout>;
  private readonly unwatch: () => void;

  constructor(private readonly id: string, message: Message) {
    writers.add(this);
    this.message = this.before = message;
    this.text = message.text;
    // A model that must be loaded first shows by now; how long that takes is not the answer's time.
    this.look = setTimeout(() => useSession.getState().refreshSoon(), LOOK_MS);
    this.unwatch = useSession.subscribe(({ models }) => {
      const isLoading = models.some(({ id: model, state }) => model === message.model && state === "loading");
      if (isLoading && !this.first) this.asked = performance.now();
    });
  }

  take({ text, finish, usage }: ChatEvent): void {
    this.finish = finish ?? this.finish;
    this.usage = usage ?? this.usage;
    if (!text) return;
    if (!this.first) this.begin();
    this.text += text;
    this.frame ||= requestAnimationFrame(() => this.show());
    this.timer ??= setTimeout(() => this.show(), HIDDEN_MS);
    this.keeper ??= setTimeout(() => this.keep(), KEEP_MS);
  }

  private begin(): void {
    this.first = performance.now();
    setRunning(this.id, { message: this.message.id, stage: "writing" });
  }

  private show(): void {
    this.rest();
    const { live } = useAnswers.getState();
    useAnswers.setState({ live: { ...live, [this.message.id]: this.text } });
  }

  private rest(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.frame = 0;
    this.timer = undefined;
  }

  /** Into the conversation, and soon to the server. */
  keep(): void {
    clearTimeout(this.keeper);
    this.keeper = undefined;
    this.put({});
    saveSoon(this.id, [this.message.id]);
  }

  private put(news: Partial<Message>): void {
    this.message = { ...this.message, text: this.text, ...news };
    putMessage(this.id, this.message);
  }

  end(status: MessageStatus, error: string | null = null): void {
    writers.delete(this);
    this.rest();
    clearTimeout(this.keeper);
    clearTimeout(this.look);
    this.unwatch();
    const ended = performance.now();
    const times = { asked: this.asked, first: this.first || ended, ended };
    const stats = this.usage && statsOf(times, this.usage, this.before.stats);
    this.put({ status, error, stats: stats ?? this.before.stats });
    const { [this.message.id]: _, ...live } = useAnswers.getState().live;
    useAnswers.setState({ live, lastEnded: this.message });
    const mine = [this.message.id];
    saveNow(this.id, mine).catch(() => saveSoon(this.id, mine));
  }
}
