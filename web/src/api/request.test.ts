// @vitest-environment node

import { describe, expect, it } from "vitest";

import { chatBody } from "./request";
import type { ChatSettings, Message } from "./types";

const settings: ChatSettings = {
  model: "m", system: null,
  sampling: {
    temperature: 0, top_p: null, top_k: null, min_p: null, repetition_penalty: null, max_tokens: 64, seed: null,
  },
};

function message(role: Message["role"], text: string, pictures: string[] = []): Message {
  return {
    id: text, parent: null, role, text, created: 0, model: null, status: "done", error: null, stats: null,
    pictures: pictures.map((id) => ({ id, media_type: "image/png", name: id })),
  };
}

describe("chatBody", () => {
  it("sends a branch, and of the sampling what is chosen", () => {
    const branch = [message("user", "Hello"), message("assistant", "Hi."), message("user", "Bye")];
    expect(chatBody("m", settings, branch)).toEqual({
      model: "m", temperature: 0, max_tokens: 64,
      messages: [
        { role: "user", content: "Hello" }, { role: "assistant", content: "Hi." }, { role: "user", content: "Bye" },
      ],
    });
  });

  it("names pictures by their ids, before the words", () => {
    const [first, second] = chatBody("m", settings, [message("user", "What?", ["p", "q"]), message("user", " ", ["r"])]).messages;
    expect(first?.content).toEqual([
      { type: "image_url", image_url: { url: "attachment:p" } },
      { type: "image_url", image_url: { url: "attachment:q" } },
      { type: "text", text: "What?" },
    ]);
    expect(second?.content).toEqual([{ type: "image_url", image_url: { url: "attachment:r" } }]);
  });

  it("has a system turn where one was written, even an empty one", () => {
    const systemOf = (system: string | null) => chatBody("m", { ...settings, system }, [message("user", "a")]).messages[0];
    expect(systemOf("Be brief.")).toEqual({ role: "system", content: "Be brief." });
    expect(systemOf("")).toEqual({ role: "system", content: "" });
    expect(systemOf(null)?.role).toBe("user");
  });

  it("goes on with an answer that ends a branch, and leaves out one without words", () => {
    const broken = [message("user", "a"), message("assistant", ""), message("user", "b"), message("assistant", "So")];
    const body = chatBody("m", settings, broken);
    expect(body.continue_final_message).toBe(true);
    expect(body.messages.map(({ content }) => content)).toEqual(["a", "b", "So"]);
  });
});
