// @vitest-environment node

import { describe, expect, it } from "vitest";

import { eventData, EventParser } from "./sse";

const STREAM = 'data: {"text":"书生 👍"}\n\n: still here\r\n\r\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:[DONE]\n\n';
const EVENTS = ['{"text":"书生 👍"}', "one\ntwo", "[DONE]"];

function inPieces(bytes: Uint8Array, size: number): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) controller.close();
      else controller.enqueue(bytes.slice(at, at + size));
      at += size;
    },
  });
}

describe("eventData", () => {
  it.each([1, 2, 3, 7, 50, 1000])("gives the same events from chunks of %d bytes", async (size) => {
    const events: string[] = [];
    for await (const data of eventData(inPieces(new TextEncoder().encode(STREAM), size))) events.push(data);
    expect(events).toEqual(EVENTS);
  });

  it("cancels the stream when nobody wants the rest", async () => {
    let isCancelled = false;
    const stream = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\ndata: 2\n\n")),
      cancel: () => { isCancelled = true; },
    });
    for await (const data of eventData(stream)) if (data === "1") break;
    expect(isCancelled).toBe(true);
  });
});

describe("EventParser", () => {
  it("keeps an event back until its end has come", () => {
    const parser = new EventParser();
    expect(parser.push("data: half")).toEqual([]);
    expect(parser.push(" and half\n")).toEqual([]);
    expect(parser.push("\n")).toEqual(["half and half"]);
  });
});
