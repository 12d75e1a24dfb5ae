import { useRef } from "react";

import type { Message } from "../api/types";

const key = ({ role, parent }: Message): string => `${role} ${parent}`;

/** The ids of a message's versions, oldest first; the same array as long as they are the same, so
 * that what is shown of it is not drawn again. */
export function useVersions(messages: readonly Message[]): (message: Message) => readonly string[] {
  const before = useRef(new Map<string, readonly string[]>());
  const groups = new Map<string, string[]>();
  for (const message of [...messages].sort((a, b) => a.created - b.created)) {
    const group = groups.get(key(message));
    if (group) group.push(message.id);
    else groups.set(key(message), [message.id]);
  }
  const versions = new Map<string, readonly string[]>();
  for (const [name, ids] of groups) {
    const old = before.current.get(name);
    versions.set(name, old?.join() === ids.join() ? old : ids);
  }
  before.current = versions;
  return (message) => versions.get(key(message)) ?? [message.id];
}
