import type { Usage } from "../api/client";
import type { AnswerStats } from "../api/types";

/** When things happened, in milliseconds. */
export interface Times {
  asked: number;
  first: number; // the first text came
  ended: number;
}

/** What an answer took; for one that was continued, together with what came `before`. */
export function statsOf(times: Times, usage: Usage, before: AnswerStats | null): AnswerStats {
  const first = (times.first - times.asked) / 1000;
  const total = (times.ended - times.asked) / 1000;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  if (!before) {
    return {
      prompt_tokens: usage.prompt_tokens, cached_tokens: cached,
      completion_tokens: usage.completion_tokens,
      first_token_seconds: first, total_seconds: total,
    };
  }
  return {
    ...before,
    // The text so far is a part of the second prompt, counted with it or, if nobody could, not yet.
    completion_tokens: before.completion_tokens + usage.completion_tokens,
    total_seconds: before.total_seconds + total - first,
  };
}

const LEAST_SECONDS = 0.01;

/** null where nothing can be said: all came at once, as the network brought it. */
export function tokensPerSecond(stats: AnswerStats): number | null {
  const seconds = stats.total_seconds - stats.first_token_seconds;
  const tokens = stats.completion_tokens - 1;
  return tokens > 0 && seconds >= LEAST_SECONDS ? tokens / seconds : null;
}
