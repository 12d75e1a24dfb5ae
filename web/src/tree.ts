// A conversation is a tree of messages; what is shown is one branch of it. Nothing here changes
// what it is given.

import type { Message } from "./api/types";

const TITLE_LENGTH = 60;

/** From the first question down to `leaf`; to the newest end where the leaf is not known. */
export function path(messages: readonly Message[], leaf: string | null): Message[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const branch: Message[] = [];
  let at = byId.get(leaf ?? "") ?? byId.get(newestEnd(messages) ?? "");
  while (at && !branch.includes(at)) {
    branch.push(at);
    at = byId.get(at.parent ?? "");
  }
  return branch.reverse();
}

/** The versions of a message, oldest first, itself among them. */
export function siblings(messages: readonly Message[], id: string): Message[] {
  const message = messages.find((each) => each.id === id);
  if (!message) return [];
  return messages.filter(isVersionOf(message)).sort((a, b) => a.created - b.created);
}

const isVersionOf = (message: Message) => (other: Message): boolean =>
  other.parent === message.parent && other.role === message.role;

/** The end of the newest branch below a message. */
export function leafBelow(messages: readonly Message[], id: string): string {
  let leaf = id;
  for (;;) {
    const child = newest(messages.filter(({ parent }) => parent === leaf));
    if (!child) return leaf;
    leaf = child.id;
  }
}

function newestEnd(messages: readonly Message[]): string | null {
  const root = newest(messages.filter(({ parent }) => parent === null));
  return root ? leafBelow(messages, root.id) : null;
}

function newest(messages: readonly Message[]): Message | undefined {
  return messages.reduce<Message | undefined>(
    (best, each) => (best && best.created > each.created ? best : each), undefined);
}

/** `messages` with one put in place of that of its id, or at the end. */
export function withMessage(messages: readonly Message[], message: Message): Message[] {
  const place = messages.findIndex(({ id }) => id === message.id);
  return place < 0 ? [...messages, message] : messages.with(place, message);
}

/** What a conversation is called after its first question; "" where it has no words. */
export function titleOf(text: string): string {
  const line = text.split("\n").map((each) => each.trim()).find(Boolean) ?? "";
  const characters = [...line];
  if (characters.length <= TITLE_LENGTH) return line;
  return `${characters.slice(0, TITLE_LENGTH - 1).join("").trimEnd()}…`;
}
