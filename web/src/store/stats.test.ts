// @vitest-environment node

import { describe, expect, it } from "vitest";

import { statsOf, tokensPerSecond } from "./stats";

const times = { asked: 1000, first: 1500, ended: 3500 };

describe("statsOf", () => {
  it("counts seconds from the question", () => {
    const usage = { prompt_tokens: 20, completion_tokens: 41, prompt_tokens_details: { cached_tokens: 16 } };
    const stats = statsOf(times, usage, null);
    expect(stats).toEqual({
      prompt_tokens: 20, cached_tokens: 16, completion_tokens: 41, first_token_seconds: 0.5, total_seconds: 2.5,
    });
    expect(tokensPerSecond(stats)).toBe(20);
  });

  it("adds what was continued", () => {
    const before = statsOf(times, { prompt_tokens: 20, completion_tokens: 41 }, null);
    const stats = statsOf(times, { prompt_tokens: 61, completion_tokens: 40 }, before);
    expect(stats).toMatchObject({ prompt_tokens: 20, completion_tokens: 81, first_token_seconds: 0.5, total_seconds: 4.5 });
    expect(tokensPerSecond(stats)).toBe(20);
  });

  it("says nothing of the speed of one token", () => {
    expect(tokensPerSecond(statsOf(times, { prompt_tokens: 20, completion_tokens: 1 }, null))).toBeNull();
  });
});
