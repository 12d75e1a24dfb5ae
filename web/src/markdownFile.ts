// A conversation from the Markdown that the server exports: its one branch, without pictures.

import { newId } from "./api/ids";
import { NO_SETTINGS } from "./store/preferences";

/** What /api/conversations/import takes; null: this is no such file. */
export function fromMarkdown(text: string): object | null {
  const [first = "", ...lines] = text.replace(/\r\n/g, "\n").split("\n");
  const title = /^# (.*)$/.exec(first)?.[1];
  if (title === undefined) return null;
  const messages: { role: string; model: string | null; lines: string[] }[] = [];
  for (const line of lines) {
    const name = /^## (.+)$/.exec(line)?.[1];
    const last = messages.at(-1);
    // Questions and answers take turns: another heading within an answer belongs to its text.
    if (name && (name === "User") !== (last?.role === "user")) {
      const isUser = name === "User";
      messages.push({ role: isUser ? "user" : "assistant", model: isUser ? null : plain(name), lines: [] });
    } else last?.lines.push(line);
  }
  if (messages[0]?.role !== "user") return null;
  const now = Date.now() / 1000;
  const ids = messages.map(newId);
  return {
    format: "shuzhai-conversation", version: 1, title: plain(title), created: now, updated: now,
    settings: NO_SETTINGS, leaf: ids.at(-1), pictures: {},
    messages: messages.map(({ role, model, lines: own }, i) => ({
      id: ids[i], parent: ids[i - 1] ?? null, role, text: own.join("\n").trim(), pictures: [],
      created: now, model, status: "done", error: null, stats: null,
    })),
  };
}

const plain = (text: string): string => text.replace(/\\([\\`*_[\]<>#])/g, "$1");
