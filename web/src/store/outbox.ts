// Brings messages to the server, as they are here at that time: at once, or soon and again and again
// until they are there. One request at a time for a conversation, so that none overtakes another.

import { api, OfflineError } from "../api/client";
import { noteSummary, useChats } from "./chats";

const SOON_MS = 1000;
const AWAY_MS = 3000;

const lines = new Map<string, Promise<unknown>>();
const waiting = new Map<string, Set<string>>(); // ids of messages, by conversation

/** Throws when it cannot. */
export function saveNow(id: string, messageIds: readonly string[]): Promise<void> {
  const turn = (lines.get(id) ?? Promise.resolve()).catch(() => undefined).then(() => send(id, messageIds));
  lines.set(id, turn);
  return turn;
}

/** The conversation's leaf goes along; no messages: that alone. */
export function saveSoon(id: string, messageIds: readonly string[] = []): void {
  const already = waiting.get(id);
  waiting.set(id, new Set([...(already ?? []), ...messageIds]));
  if (!already) void keepSaving(id);
}

async function keepSaving(id: string): Promise<void> {
  let pause = SOON_MS;
  for (let empty = false; !empty;) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const messageIds = [...(waiting.get(id) ?? [])];
    waiting.set(id, new Set());
    pause = SOON_MS;
    await saveNow(id, messageIds).catch((error: unknown) => {
      if (!(error instanceof OfflineError)) return; // the server will not have them
      waiting.set(id, new Set([...messageIds, ...(waiting.get(id) ?? [])]));
      pause = AWAY_MS;
    });
    empty = waiting.get(id)?.size === 0 && pause === SOON_MS;
  }
  waiting.delete(id);
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
  if (chosen.length > 0) noteSummary(await api.saveMessages(id, chosen, leaf ?? undefined, isLast), true);
  else noteSummary(await api.patchConversation(id, { leaf }), false);
}
