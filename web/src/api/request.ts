// What is sent to a model for a branch of a conversation.

import type { ChatBody, ChatMessage, ContentPart } from "./client";
import type { ChatSettings, Message, Sampling } from "./types";

/** The answer to the last message of `branch`; or, if that is an answer, how it goes on. */
export function chatBody(model: string, settings: ChatSettings, branch: readonly Message[]): ChatBody {
  const messages = branch.filter(saysSomething).map(chatMessage);
  if (settings.system !== null) messages.unshift({ role: "system", content: settings.system });
  const body: ChatBody = { model, messages, ...chosen(settings.sampling) };
  return branch.at(-1)?.role === "assistant" ? { ...body, continue_final_message: true } : body;
}

/** An answer that failed before its first word stays in the conversation, and is not sent. */
const saysSomething = ({ role, text }: Message): boolean => role === "user" || text !== "";

function chatMessage({ role, text, pictures }: Message): ChatMessage {
  if (pictures.length === 0) return { role, content: text };
  const parts = pictures.map(({ id }): ContentPart => (
    { type: "image_url", image_url: { url: `attachment:${id}` } }));
  return { role, content: text.trim() ? [...parts, { type: "text", text }] : parts };
}

function chosen(sampling: Sampling): Partial<Sampling> {
  return Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== null));
}
