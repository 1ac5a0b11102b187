/**
 * Server-Sent Events over fetch: bytes in, events out.
 *
 * The rules are the WHATWG HTML standard's, 9.2.5 and 9.2.6. The browser's own EventSource cannot send a POST.
 */

/** Reads a stream that may be cut anywhere, inside a character or a line end as well. */
export class EventParser {
  #decoder = new TextDecoder("utf-8"); // drops a byte order mark at the beginning
  #rest = "";
  #afterCarriageReturn = false;
  #data = [];
  #event = "";
  lastEventId = "";
  retry = null; // milliseconds

  /** Returns the events that `bytes` complete: {event, data, lastEventId}. */
  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    if (this.#afterCarriageReturn && text[0] === "\n") text = text.slice(1); // the second half of a CRLF
    this.#afterCarriageReturn = text ? text.endsWith("\r") : false;
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    return lines.map((line) => this.#line(line)).filter(Boolean);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.lastEventId = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
    return null;
  }

  #dispatch() {
    const [event, data] = [this.#event || "message", this.#data];
    [this.#event, this.#data] = ["", []];
    return data.length ? { event, data: data.join("\n"), lastEventId: this.lastEventId } : null;
  }
}

/** Yields the events of a fetch response as they arrive. */
export async function* readEvents(response) {
  const parser = new EventParser();
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be gone already, which is what is wanted
  }
}
