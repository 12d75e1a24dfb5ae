// All that the page asks of the server. Addresses are relative: the page may live under any path.

import { eventData } from "./sse";
import type {
  ChatSettings, Conversation, ConversationSummary, Example, Message, Model, Picture, Sampling,
  ServerStatus,
} from "./types";

/** The server's no, in its own words. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string | null;
  readonly param: string | null;

  constructor(message: string, status: number, code: string | null = null, param: string | null = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/** No answer at all, or one that broke off. */
export class OfflineError extends Error {
  constructor() {
    super("The server cannot be reached.");
    this.name = "OfflineError";
  }
}

const KEY = "shuzhai.key";
let key: string | null = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
let askForKey: () => Promise<boolean> = () => Promise.resolve(false);
let asking: Promise<boolean> | null = null;

/** The API key of all requests from now on; kept until the tab closes, or for good. */
export function setKey(next: string | null, remember = false): void {
  if (next !== key) forgetPictures();
  key = next;
  for (const store of [sessionStorage, localStorage]) store.removeItem(KEY);
  if (next) (remember ? localStorage : sessionStorage).setItem(KEY, next);
}

/** Called when the server wants a key. Says whether there is one now; then the request is repeated. */
export function onKeyNeeded(ask: () => Promise<boolean>): void {
  askForKey = ask;
}

// Many requests may need the key at once: one question for all of them.
function keyIsThere(): Promise<boolean> {
  asking ??= askForKey().finally(() => { asking = null; });
  return asking;
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  for (;;) {
    const sent = key;
    const headers = new Headers(init.headers);
    if (sent) headers.set("Authorization", `Bearer ${sent}`);
    const response = await fetch(path, { ...init, headers }).catch((error: unknown) => {
      throw init.signal?.aborted ? error : new OfflineError();
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await errorOf(response);
    if (sent === key && !(await keyIsThere())) throw await errorOf(response);
  }
}

interface ErrorBody { message?: string; code?: string | null; param?: string | null }

async function errorOf(response: Response): Promise<Error> {
  const body = (await response.json().catch(() => null)) as { error?: ErrorBody } | null;
  const error = body?.error;
  // What answers for a server that is away, a tunnel or a proxy, knows nothing of our errors.
  if (!error && [502, 503, 504].includes(response.status)) return new OfflineError();
  const message = error?.message ?? `HTTP ${response.status}`;
  return new ApiError(message, response.status, error?.code ?? null, error?.param ?? null);
}

async function get<T>(path: string): Promise<T> {
  return (await (await request(path)).json()) as T;
}

async function post<T>(path: string, body: unknown, more: RequestInit = {}): Promise<T> {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    ...more,
  });
  return (await response.json()) as T;
}

const conversationPath = (id: string): string => `api/conversations/${encodeURIComponent(id)}`;

export interface ConversationPage { data: ConversationSummary[]; next: string | null }
export interface NewConversation { id: string; title: string; settings: ChatSettings }
export type ConversationPatch = Partial<Pick<Conversation, "title" | "settings" | "leaf">>;
export type ExportFormat = "json" | "markdown";

export const api = {
  status: (): Promise<ServerStatus> => get("api/status"),
  pull: (model: string): Promise<Model> => post("api/models/pull", { model }),
  load: (model: string): Promise<unknown> => post("v1/models/load", { model }),
  unload: (model: string): Promise<unknown> => post("v1/models/unload", { model }),

  conversations({ search = "", before = null as string | null } = {}): Promise<ConversationPage> {
    const query = new URLSearchParams();
    if (search) query.set("search", search);
    if (before) query.set("before", before);
    return get(`api/conversations?${query}`);
  },
  conversation: (id: string): Promise<Conversation> => get(conversationPath(id)),
  createConversation: (made: NewConversation): Promise<Conversation> => post("api/conversations", made),
  patchConversation: (id: string, patch: ConversationPatch): Promise<ConversationSummary> =>
    post(conversationPath(id), patch),
  async deleteConversation(id: string): Promise<void> {
    await request(conversationPath(id), { method: "DELETE" });
  },
  /** `isLast`: the page is being left, and the browser is to send it all the same. */
  saveMessages(id: string, messages: Message[], leaf?: string, isLast = false): Promise<ConversationSummary> {
    const body = leaf === undefined ? { messages } : { messages, leaf };
    return post(`${conversationPath(id)}/messages`, body, { keepalive: isLast });
  },
  async exportConversation(id: string, format: ExportFormat): Promise<Blob> {
    return (await request(`${conversationPath(id)}/export?format=${format}`)).blob();
  },
  async importConversations(json: unknown): Promise<ConversationSummary[]> {
    return (await post<ConversationPage>("api/conversations/import", json)).data;
  },

  async upload(file: Blob, name: string): Promise<Picture> {
    const path = `api/attachments?${new URLSearchParams({ name })}`;
    const headers = { "Content-Type": file.type };
    return (await (await request(path, { method: "POST", headers, body: file })).json()) as Picture;
  },
  pictureUrl,

  settings: (): Promise<ChatSettings> => get("api/settings"),
  saveSettings: (settings: ChatSettings): Promise<ChatSettings> => post("api/settings", settings),
  examples: (): Promise<Example[]> => get("examples/examples.json"),
};

// An <img> cannot show a key, so pictures are fetched here and shown from memory.
const MAX_PICTURES = 200;
const pictures = new Map<string, Promise<string>>();

/** A blob: address of a picture that the server keeps. */
function pictureUrl(id: string): Promise<string> {
  const known = pictures.get(id);
  if (known) return known;
  const url = request(`api/attachments/${encodeURIComponent(id)}`)
    .then(async (response) => URL.createObjectURL(await response.blob()));
  pictures.set(id, url);
  url.catch(() => pictures.delete(id));
  if (pictures.size > MAX_PICTURES) forget(pictures.keys().next().value ?? id);
  return url;
}

function forget(id: string): void {
  pictures.get(id)?.then(URL.revokeObjectURL, () => undefined);
  pictures.delete(id);
}

function forgetPictures(): void {
  for (const id of [...pictures.keys()]) forget(id);
}

export type ContentPart =
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: { url: string } };

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string | ContentPart[];
}

export interface ChatBody extends Partial<Sampling> {
  model: string;
  messages: ChatMessage[];
  continue_final_message?: true;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
}

export interface ChatEvent {
  text?: string;
  finish?: "stop" | "length";
  usage?: Usage;
}

interface ChatChunk {
  choices: { delta: { content?: string }; finish_reason: "stop" | "length" | null }[];
  usage?: Usage | null;
  error?: ErrorBody;
}

/** An answer as it comes. Throws ApiError, OfflineError, or what `signal` was aborted with. */
export async function* streamChat(body: ChatBody, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.body) throw new OfflineError();
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      yield chatEvent(JSON.parse(data) as ChatChunk);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
  }
  signal.throwIfAborted();
  throw new OfflineError(); // it broke off
}

function chatEvent({ choices, usage, error }: ChatChunk): ChatEvent {
  if (error) throw new ApiError(error.message ?? "", 200, error.code ?? null, error.param ?? null);
  const event: ChatEvent = {};
  const choice = choices[0];
  if (choice?.delta.content) event.text = choice.delta.content;
  if (choice?.finish_reason) event.finish = choice.finish_reason;
  if (usage) event.usage = usage;
  return event;
}
