// What the server takes. A kind shows in the first bytes only: names may be wrong or missing.

export const MAX_BYTES = 32 * 2 ** 20;
export const MAX_PICTURES = 64; // of a request
export const ACCEPTED = "image/png,image/jpeg,image/webp,image/gif,image/bmp,application/pdf";

const KINDS: readonly (readonly [string, RegExp])[] = [
  ["image/png", /^\x89PNG\r\n\x1a\n/],
  ["image/jpeg", /^\xff\xd8\xff/],
  ["image/gif", /^GIF8[79]a/],
  ["image/webp", /^RIFF[^]{4}WEBP/],
  ["image/bmp", /^BM/],
  ["application/pdf", /^%PDF-/],
];

export type Fault = "badKind" | "tooBig" | "unreadable";

/** The file as what it is, or why it cannot be taken. */
export async function readKind(file: File): Promise<Blob | Fault> {
  try {
    const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer()));
    const kind = KINDS.find(([, pattern]) => pattern.test(start))?.[0];
    if (!kind) return "badKind";
    if (file.size > MAX_BYTES) return "tooBig";
    return new Blob([file], { type: kind });
  } catch {
    return "unreadable"; // a folder, or a file that is gone
  }
}
