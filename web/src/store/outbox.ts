// Brings messages to the server, as they are here at that time: at once, or soon and again and again
// until they are there. One request at a time for a conversation, so that none overtakes another.

import i18n from "i18next";

import { api, ApiError } from "../api/client";
import { problemText } from "../i18n/server";
import { useToasts } from "../ui";
import { noteSummary, useChats } from "./chats";
import { beginSave, endSave } from "./pending";
import { usePreferences } from "./preferences";

const SOON_MS = 1000;
const AWAY_MS = 3000;

const lines = new Map<string, Promise<unknown>>();
const waiting = new Map<string, Set<string>>(); // ids of messages, by conversation

/** Throws when it cannot. */
export function saveNow(id: string, messageIds: readonly string[]): Promise<void> {
  beginSave(id);
  const turn = (lines.get(id) ?? Promise.resolve()).catch(() => undefined)
    .then(() => send(id, messageIds)).finally(() => endSave(id));
  lines.set(id, turn);
  return turn;
}

/** The conversation's leaf goes along; no messages: that alone. */
export function saveSoon(id: string, messageIds: readonly string[] = []): void {
  const already = waiting.get(id);
  waiting.set(id, new Set([...(already ?? []), ...messageIds]));
  if (already) return;
  beginSave(id);
  void keepSaving(id).finally(() => endSave(id));
}

async function keepSaving(id: string): Promise<void> {
  let pause = SOON_MS;
  for (let empty = false; !empty;) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const messageIds = [...(waiting.get(id) ?? [])];
    waiting.set(id, new Set());
    pause = SOON_MS;
    await saveNow(id, messageIds).catch((error: unknown) => {
      if (error instanceof ApiError && error.status !== 404) tell(error); // 404: deleted elsewhere
      if (!mayPass(error)) return;
      waiting.set(id, new Set([...messageIds, ...(waiting.get(id) ?? [])]));
      pause = AWAY_MS;
    });
    empty = waiting.get(id)?.size === 0 && pause === SOON_MS;
  }
  waiting.delete(id);
}

/** The server may have it another time: when it is reached, has its key, or has room and time again. */
function mayPass(error: unknown): boolean {
  return !(error instanceof ApiError) || error.status >= 500 || [401, 408, 429].includes(error.status);
}

function tell(error: ApiError): void {
  const problem = problemText(error, usePreferences.getState().language);
  useToasts.getState().say(i18n.t("chat:notKept", { problem }), "error");
}

/** What waits, for the last time: the page is being left. */
export function saveAtEnd(): void {
  for (const [id, messageIds] of waiting) send(id, [...messageIds], true).catch(() => undefined);
}

async function send(id: string, messageIds: readonly string[], isLast = false): Promise<void> {
  const conversation = useChats.getState().held[id];
  if (!conversation) return; // deleted meanwhile
  const { messages, leaf } = conversation;
  const chosen = messages.filter((message) => messageIds.includes(message.id));
  // The server refuses a leaf that it has not heard of.
  const isKnown = leaf === null || messageIds.includes(leaf) || !waiting.get(id)?.has(leaf);
  if (chosen.length > 0) {
    const known = isKnown && leaf !== null ? leaf : undefined;
    noteSummary(await api.saveMessages(id, chosen, known, isLast), true);
  } else if (isKnown) noteSummary(await api.patchConversation(id, { leaf }), false);
}
