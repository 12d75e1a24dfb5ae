// @vitest-environment node

import { describe, expect, it } from "vitest";

import { MAX_BYTES, readKind } from "./kinds";

const file = (start: string, name = "a.txt"): File =>
  new File([Uint8Array.from(start, (each) => each.charCodeAt(0))], name);

describe("readKind", () => {
  it.each([
    ["\x89PNG\r\n\x1a\n", "image/png"], ["\xff\xd8\xff\xe0", "image/jpeg"], ["GIF89a", "image/gif"],
    ["RIFF\x00\x00\x00\x00WEBPVP8", "image/webp"], ["BM\x00", "image/bmp"], ["%PDF-1.7", "application/pdf"],
  ])("knows %j by its first bytes", async (start, kind) => {
    expect(await readKind(file(start))).toMatchObject({ type: kind });
  });

  it("does not trust a name", async () => {
    expect(await readKind(file("<svg>", "a.png"))).toBe("badKind");
    expect(await readKind(file("", "a.png"))).toBe("badKind");
  });

  it("says what is too large, and what cannot be read", async () => {
    const large = file("BM");
    Object.defineProperty(large, "size", { value: MAX_BYTES + 1 });
    expect(await readKind(large)).toBe("tooBig");
    const folder = { slice: () => ({ arrayBuffer: () => Promise.reject(new Error("a folder")) }) } as unknown as File;
    expect(await readKind(folder)).toBe("unreadable");
  });
});
