// Server-sent events as text/event-stream has them; a chunk of the network may end anywhere, even
// within a character. Only their data is of use here.

/** The data of each event, its lines joined. Ends where the stream ends. */
export async function* eventData(bytes: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => undefined); // tells the server, if it has not ended
  }
}

/** Takes text in any pieces, and gives the data of the events that are whole. */
export class EventParser {
  private rest = "";
  private data: string[] = [];

  push(text: string): string[] {
    const whole: string[] = [];
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop() ?? "";
    for (const line of lines) {
      const data = this.take(line.endsWith("\r") ? line.slice(0, -1) : line);
      if (data !== null) whole.push(data);
    }
    return whole;
  }

  private take(line: string): string | null {
    if (line.startsWith("data:")) {
      this.data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
      return null;
    }
    if (line !== "" || this.data.length === 0) return null; // a comment, or another field
    const data = this.data.join("\n");
    this.data = [];
    return data;
  }
}
