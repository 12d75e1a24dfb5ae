// The conversations: the list of all, the one that is shown, and those that are held besides
// because they are answered or compared. The server keeps them; this is the page's copy.

import { create } from "zustand";

import { api, ApiError, type ExportFormat } from "../api/client";
import type { ChatSettings, Conversation, ConversationSummary, Message, Model } from "../api/types";
import { newId } from "../api/ids";
import { fromMarkdown } from "../markdownFile";
import { withMessage } from "../tree";
import { isPending } from "./pending";
import { usePreferences } from "./preferences";
import { useSession } from "./session";

interface Chats {
  list: ConversationSummary[]; // newest first
  hasMore: boolean;
  search: string;
  isListed: boolean; // the list has come, if only once
  current: Conversation | null; // null: it is being fetched, or there is a problem
  problem: "missing" | "offline" | null; // with the one that was to be opened
  held: Record<string, Conversation>; // by id
  unsaved: ReadonlySet<string>; // of those, new ones that the server has not heard of

  /** Fetches the list from its start; with `search`, only what is found, from now on. */
  loadList(search?: string): Promise<void>;
  loadMore(): Promise<void>;
  open(id: string): Promise<void>;
  /** Opens once more what could not be opened. */
  retry(): Promise<void>;
  /** Shows an empty conversation, which the server hears of with its first question. */
  startNew(): void;
  rename(id: string, title: string): Promise<void>;
  remove(id: string): Promise<void>;
  importFile(file: Blob): Promise<ConversationSummary[]>;
  download(id: string, format: ExportFormat): Promise<void>;
  /** Of the conversation that is shown, or of the one that is named. */
  saveSettings(change: Partial<ChatSettings>, id?: string): Promise<void>;
  /** Of the conversation that is shown; and the one that new ones begin with. */
  chooseModel(model: string): Promise<void>;
}

export const useChats = create<Chats>((set, get) => ({
  list: [],
  hasMore: false,
  search: "",
  isListed: false,
  current: null,
  problem: null,
  held: {},
  unsaved: new Set(),

  async loadList(search = get().search) {
    set({ search });
    const { data, next } = await api.conversations({ search });
    if (get().search !== search) return; // more was typed meanwhile
    cursor = next;
    set({ list: data, hasMore: next !== null, isListed: true });
  },

  async loadMore() {
    const { search } = get();
    if (cursor === null) return;
    const before = cursor;
    const { data, next } = await api.conversations({ search, before });
    if (get().search !== search || cursor !== before) return;
    cursor = next;
    const known = new Set(get().list.map(({ id }) => id));
    set({ list: [...get().list, ...data.filter(({ id }) => !known.has(id))], hasMore: next !== null });
  },

  async open(id) {
    const before = get().held[id] ?? null;
    opening = id;
    set({ current: before, problem: null });
    if (before && (get().unsaved.has(id) || isAnswered(before) || isPending(id))) return;
    try {
      const fetched = await fetchConversation(id);
      if (opening === id) set({ current: fetched });
    } catch (error) {
      if (opening !== id || before) return;
      if (error instanceof ApiError && error.status !== 404) throw error;
      set({ problem: error instanceof ApiError ? "missing" : "offline" });
    }
  },

  async retry() {
    if (opening !== null) await get().open(opening);
  },

  startNew() {
    const { current, unsaved } = get();
    if (current && unsaved.has(current.id) && current.messages.length === 0) return;
    const fresh = beginConversation();
    opening = fresh.id;
    set({ current: fresh, problem: null });
  },

  async rename(id, title) {
    noteSummary(await api.patchConversation(id, { title }), false);
  },

  async remove(id) {
    await api.deleteConversation(id).catch((error: unknown) => {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
    });
    const { held: { [id]: _, ...held }, list, current } = get();
    set({ held, list: list.filter((each) => each.id !== id), current: current?.id === id ? null : current });
  },

  async importFile(file) {
    const text = await file.text();
    const imported = await api.importConversations(fromMarkdown(text) ?? JSON.parse(text));
    await get().loadList("");
    return imported;
  },

  async download(id, format) {
    const blob = await api.exportConversation(id, format);
    const title = get().list.find((each) => each.id === id)?.title ?? get().held[id]?.title;
    saveFile(blob, `${fileName(title ?? "")}.${format === "json" ? "json" : "md"}`);
  },

  async saveSettings(change, id = get().current?.id) {
    const conversation = get().held[id ?? ""];
    if (!conversation) return;
    const settings = { ...conversation.settings, ...change };
    hold({ ...conversation, settings });
    if (!get().unsaved.has(conversation.id)) await api.patchConversation(conversation.id, { settings });
  },

  async chooseModel(model) {
    useSession.getState().choose(model);
    await get().saveSettings({ model });
  },
}));

let cursor: string | null = null; // of the rest of the list
let opening: string | null = null; // the one that was asked for last

/** The model that a conversation's next question goes to. */
export function modelOf(
  conversation: Conversation | null, models: Model[], chosen: string | null,
): Model | undefined {
  const served = models.filter((model) => model.served);
  return served.find(({ id }) => id === conversation?.settings.model)
    ?? served.find(({ id }) => id === chosen);
}

export function useModelOf(conversation: Conversation | null): Model | undefined {
  return useSession(({ models, chosen }) => modelOf(conversation, models, chosen));
}

/** A new conversation, held here. */
export function beginConversation(model: string | null = null): Conversation {
  const { defaults } = usePreferences.getState();
  const now = Date.now() / 1000;
  const fresh: Conversation = {
    id: newId(), title: "", created: now, updated: now, leaf: null, messages: [],
    settings: { ...defaults, model: model ?? defaults.model },
  };
  useChats.setState(({ unsaved }) => ({ unsaved: new Set(unsaved).add(fresh.id) }));
  hold(fresh);
  return fresh;
}

/** Fetches what new conversations begin with; those that were begun before that was known have it, too. */
export async function loadDefaults(): Promise<void> {
  const before = usePreferences.getState().defaults;
  await usePreferences.getState().loadDefaults();
  const { defaults } = usePreferences.getState();
  const { held, unsaved } = useChats.getState();
  for (const conversation of Object.values(held)) {
    if (conversation.messages.length || !unsaved.has(conversation.id)) continue;
    const { model, ...own } = conversation.settings;
    const { model: _, ...old } = before;
    if (JSON.stringify(own) !== JSON.stringify(old)) continue;
    hold({ ...conversation, settings: { ...defaults, model: model ?? defaults.model } });
  }
}

/** Fetches a conversation, and holds it. */
export async function fetchConversation(id: string): Promise<Conversation> {
  const before = useChats.getState().held[id];
  const fetched = ended(await api.conversation(id));
  const now = useChats.getState().held[id];
  if (now && (now !== before || isPending(id))) return now; // what was done here meanwhile is newer
  hold(fetched);
  return fetched;
}

/** Tells the server of a conversation, if it has not heard of it. */
export async function saveConversation(id: string): Promise<void> {
  const conversation = useChats.getState().held[id];
  if (!conversation || !useChats.getState().unsaved.has(id)) return;
  const { title, settings } = conversation;
  noteSummary(await api.createConversation({ id, title, settings }), true);
  useChats.setState(({ unsaved }) => ({ unsaved: new Set([...unsaved].filter((each) => each !== id)) }));
}

/** Puts a conversation in place of its older copy, wherever it is shown. */
export function hold(conversation: Conversation): void {
  useChats.setState(({ held, current }) => ({
    held: { ...held, [conversation.id]: conversation },
    current: current?.id === conversation.id ? conversation : current,
  }));
}

/** Changes a conversation that is still held; says whether it is. */
export function change(id: string, how: (conversation: Conversation) => Conversation): boolean {
  const conversation = useChats.getState().held[id];
  if (conversation) hold(how(conversation));
  return conversation !== undefined;
}

export function putMessage(id: string, message: Message): boolean {
  return change(id, (each) => ({ ...each, messages: withMessage(each.messages, message) }));
}

/** What the server says of a conversation; one with news comes to the top of the list. */
export function noteSummary({ id, title, created, updated }: ConversationSummary, isNews: boolean): void {
  const summary = { id, title, created, updated };
  const { list, search } = useChats.getState();
  const isThere = list.some((each) => each.id === id);
  if (isNews && (isThere || !search)) {
    useChats.setState({ list: [summary, ...list.filter((each) => each.id !== id)] });
  } else if (isThere) {
    useChats.setState({ list: list.map((each) => (each.id === id ? summary : each)) });
  }
  change(id, (each) => ({ ...each, title, updated }));
}

export const isAnswered = ({ messages }: Conversation): boolean =>
  messages.some(({ status }) => status === "streaming");

/** Nobody here streams what the server calls streaming: the page that did was closed. */
function ended(conversation: Conversation): Conversation {
  const messages = conversation.messages.map((message): Message => (
    message.status === "streaming" ? { ...message, status: "stopped" } : message));
  return { ...conversation, messages };
}

function saveFile(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Without what file systems refuse. */
function fileName(title: string): string {
  return title.replace(/[\\/:*?"<>|\p{Cc}]+/gu, " ").trim() || "chat";
}

