import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { api, ApiError, OfflineError, onKeyNeeded, setKey, streamChat, type ChatEvent } from "./client";

const fetcher = vi.fn<typeof fetch>();
const json = (body: unknown, status = 200) => new Response(JSON.stringify(body), { status });
const refusal = (status: number, code: string) => json({ error: { message: "No.", code, param: null } }, status);
const sentKey = (call: number) => new Headers(fetcher.mock.calls[call]?.[1]?.headers).get("Authorization");

beforeEach(() => {
  fetcher.mockReset();
  vi.stubGlobal("fetch", fetcher);
});
afterEach(() => {
  setKey(null);
  onKeyNeeded(() => Promise.resolve(false));
  vi.unstubAllGlobals();
});

async function collect(signal = new AbortController().signal): Promise<ChatEvent[]> {
  const events: ChatEvent[] = [];
  for await (const event of streamChat({ model: "m", messages: [] }, signal)) events.push(event);
  return events;
}

describe("errors", () => {
  it("are the server's own words", async () => {
    fetcher.mockResolvedValue(refusal(404, "not_found"));
    const error = await api.conversation("x").catch((each: unknown) => each);
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ message: "No.", status: 404, code: "not_found" });
  });

  it("tell a server that is away, also behind a proxy that answers for it", async () => {
    fetcher.mockRejectedValueOnce(new TypeError("Failed to fetch"));
    await expect(api.status()).rejects.toBeInstanceOf(OfflineError);
    fetcher.mockResolvedValueOnce(new Response("<h1>Bad gateway</h1>", { status: 502 }));
    await expect(api.status()).rejects.toBeInstanceOf(OfflineError);
  });
});

describe("a key", () => {
  it("is asked for once, however many requests need it, and then sent", async () => {
    const ask = vi.fn(async () => {
      setKey("secret");
      return Promise.resolve(true);
    });
    onKeyNeeded(ask);
    fetcher.mockImplementation((_, init) => Promise.resolve(
      new Headers(init?.headers).get("Authorization") === "Bearer secret" ? json({ data: [], next: null }) : refusal(401, "k")));
    await Promise.all([api.conversations(), api.conversations()]);
    expect(ask).toHaveBeenCalledTimes(1);
    expect(sentKey(3)).toBe("Bearer secret");
  });

  it("that nobody gives leaves the refusal", async () => {
    fetcher.mockImplementation(() => Promise.resolve(refusal(401, "invalid_api_key")));
    await expect(api.status()).rejects.toMatchObject({ status: 401 });
    expect(fetcher).toHaveBeenCalledTimes(1);
  });
});

describe("streamChat", () => {
  const event = (data: unknown) => `data: ${JSON.stringify(data)}\n\n`;
  const chunk = (content: string | undefined, finish_reason: string | null = null) =>
    event({ choices: [{ delta: { content }, finish_reason }], usage: null });

  it("gives text, end and usage", async () => {
    const usage = { prompt_tokens: 3, completion_tokens: 2 };
    fetcher.mockResolvedValue(new Response(
      chunk("") + chunk("Hel") + chunk("lo", "stop") + event({ choices: [], usage }) + "data: [DONE]\n\n"));
    expect(await collect()).toEqual([{}, { text: "Hel" }, { text: "lo", finish: "stop" }, { usage }]);
    expect(JSON.parse(String(fetcher.mock.calls[0]?.[1]?.body))).toMatchObject({
      stream: true, stream_options: { include_usage: true },
    });
  });

  it("ends in the error that the server tells in it", async () => {
    fetcher.mockResolvedValue(new Response(chunk("Hel") + event({ error: { message: "Dead.", code: "engine_dead" } })));
    await expect(collect()).rejects.toMatchObject({ message: "Dead.", code: "engine_dead" });
  });

  it("that breaks off is no whole answer", async () => {
    fetcher.mockResolvedValue(new Response(chunk("Hel")));
    await expect(collect()).rejects.toBeInstanceOf(OfflineError);
  });

  it("that is stopped says so", async () => {
    const controller = new AbortController();
    fetcher.mockImplementation((_, init) => new Promise((_resolve, reject) => {
      init?.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    }));
    const answer = collect(controller.signal);
    controller.abort();
    await expect(answer).rejects.toMatchObject({ name: "AbortError" });
  });
});
