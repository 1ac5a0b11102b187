/** Asks a relay and reads its answer through lost connections: no token is missing, none comes twice. */

const SILENCE = 40_000; // milliseconds until a connection counts as dead; pings come each 15 s
const PASSING = [0, 408, 429, 500, 502, 503, 504]; // statuses after which the same call may succeed

/** Every failure. `status` 0: no answer came; `retryAfter`: seconds, waited for up to a minute. */
export class RelayError extends Error {
  constructor(sentence, code = "unreachable", status = 0, retryAfter = 0) {
    Object.assign(super(sentence), { name: "RelayError", code, status, retryAfter });
  }

  get passes() { return PASSING.includes(this.status) && this.retryAfter <= 60; }
}

/** Seconds until the next try: `least`, and full jitter. */
export const pause = (tried, least = 0) => least + Math.random() * Math.min(30, 2 ** (tried - 2));

export class Relay {
  /** `base` ends with a slash; `tries`: how many in a row may bring nothing. */
  constructor(base, { key, tries = 10 } = {}) {
    Object.assign(this, { base: new URL(base, globalThis.location?.href), key, tries });
  }

  /** Begins one turn, however often it has to POST. Yields `begun` (id, url), then as `follow`. */
  ask(question, options) { return this.#read({ ...options, question }); }

  /**
   * Yields {type, ...} behind the event `after`: open, token (token), status (the server tries again), lost (error;
   * in: seconds), error (error, code), done (status). Throws RelayError. `signal` ends the reading, not the answer.
   */
  follow(url, options) { return this.#read({ ...options, url }); }

  cancel(url) { return this.call(url, { method: "DELETE" }); }

  /** fetch, with the key where it belongs, for good answers alone. */
  async call(url, { headers, signal = AbortSignal.timeout(SILENCE), ...options } = {}) {
    const address = new URL(url, this.base);
    const key = this.key && address.origin === this.base.origin && { Authorization: `Bearer ${this.key}` };
    const response = await fetch(address, { ...options, headers: { ...key, ...headers }, signal }).catch(() => null);
    if (!response) throw new RelayError("The server cannot be reached.");
    if (response.ok) return response;
    const { error, code } = (await response.json().catch(() => null)) ?? {}; // null: a proxy's own page
    const sentence = error ?? `The server answered ${response.status}.`;
    throw new RelayError(sentence, code ?? "refused", response.status, +response.headers.get("Retry-After") || 0);
  }

  async *#read({ question, url, after = 0, signal, idempotencyKey = `${Date.now()}${Math.random()}${Math.random()}` }) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
    const post = { method: "POST", headers, body: JSON.stringify(question) };
    for (let tried = 1, least = 1; ; tried += 1) {
      signal?.throwIfAborted();
      const line = lifeline(signal);
      let error = new RelayError("The connection was lost.");
      try {
        if (!url) {
          const begun = await (await this.call("streams", { ...post, signal: line.signal })).json();
          url = begun.url;
          yield { type: "begun", ...begun };
        }
        const headers = { Accept: "text/event-stream", "Last-Event-ID": after };
        const { status, body } = await this.call(url, { headers, signal: line.signal });
        if (status === 204) return;
        yield { type: "open" };
        for await (const { id, event, data, retry } of blocks(body, line)) {
          if (retry) least = retry / 1000;
          const isOld = id <= after; // false without an id
          if (id > after) [after, tried] = [+id, 1];
          if (!data || isOld) continue;
          const value = JSON.parse(data);
          if (event === "ticket") url = value.url;
          else yield { type: event ?? ("token" in value ? "token" : "error"), id: after, ...value };
          if (event === "done") return;
        }
      } catch (failure) {
        if (failure instanceof RelayError) error = failure;
      } finally {
        line.end();
      }
      signal?.throwIfAborted();
      if (tried >= this.tries || !error.passes) throw error;
      const seconds = pause(tried, error.retryAfter || least);
      yield { type: "lost", error, in: seconds };
      await sleep(seconds, signal);
    }
  }
}

/** What ends a connection: `signal`, or silence. */
function lifeline(signal) {
  const controller = new AbortController();
  let timer;
  const end = () => { clearTimeout(timer); signal?.removeEventListener("abort", end); controller.abort(); };
  const heard = () => { clearTimeout(timer); timer = setTimeout(end, SILENCE); };
  signal?.addEventListener("abort", end);
  heard();
  return { signal: controller.signal, heard, end };
}

const sleep = (seconds, signal) => new Promise((wake) => {
  setTimeout(wake, seconds * 1000);
  signal?.addEventListener("abort", wake, { once: true });
});

/** The blocks of an event stream, those without data as well (WHATWG HTML, 9.2.6). */
async function* blocks(body, line) {
  const [reader, decoder] = [body.getReader(), new TextDecoder()];
  let [rest, block] = ["", {}];
  for (let piece; !(piece = await reader.read()).done;) {
    line.heard();
    const lines = (rest + decoder.decode(piece.value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const text of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(text);
      if (text) block[name] = name === "data" && block.data ? `${block.data}\n${value}` : value;
      else { yield block; block = {}; }
    }
  }
}
