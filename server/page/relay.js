/** Asks a relay and reads on through lost connections: no token is missing, none comes twice. */

const SILENCE = 40_000; // ms; pings come each 15 s

/** `status` 0: no answer came; `retryAfter`: seconds. */
export class RelayError extends Error {
  constructor(message, code = "unreachable", status = 0, retryAfter = 0) {
    Object.assign(super(message), { name: "RelayError", code, status, retryAfter });
  }

  get passes() { return /^(0|408|429|50[0234])$/.test(this.status) && this.retryAfter <= 60; }
}

/** Seconds until the next try: `least`, and full jitter. */
export const pause = (tried, least = 0) => least + Math.random() * Math.min(30, 2 ** (tried - 2));

export class Relay {
  /** `base` ends with a slash; `tries`: how many in a row may bring nothing. */
  constructor(base, { key, tries = 10 } = {}) {
    Object.assign(this, { base: new URL(base, globalThis.location?.href), key, tries });
  }

  /** Yields begun (id, url), then as `follow`. */
  ask(question, options) { return this.#read({ ...options, question }); }

  /** Yields {type, ...}: open, token, status, lost (error; in: seconds), error, done. `signal` ends the reading. */
  follow(url, options) { return this.#read({ ...options, url }); }

  cancel(url) { return this.call(url, { method: "DELETE" }); }

  /** fetch, with the key for this origin alone. */
  async call(url, { headers, signal = AbortSignal.timeout(SILENCE), ...rest } = {}) {
    const to = new URL(url, this.base);
    const key = this.key && to.origin === this.base.origin && { Authorization: `Bearer ${this.key}` };
    const got = await fetch(to, { ...rest, headers: { ...key, ...headers }, signal }).catch(() => null);
    if (!got) throw new RelayError("The server cannot be reached.");
    if (got.ok) return got;
    const { error = `The server answered ${got.status}.`, code = "refused" } = (await got.json().catch(() => 0)) || {};
    throw new RelayError(error, code, got.status, Math.max(0, got.headers.get("Retry-After")) || 0);
  }

  async *#read({ question, url, after, signal, idempotencyKey = `${Date.now()}${Math.random()}${Math.random()}` }) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
    const post = { method: "POST", headers, body: JSON.stringify(question) };
    let last = +after || 0;
    for (let tried = 1, least = 1; ; tried += 1) {
      signal?.throwIfAborted();
      const line = timer(SILENCE, signal);
      let error = new RelayError("The connection was lost.");
      try {
        if (!url) {
          const begun = await (await this.call("streams", { ...post, signal: line.signal })).json();
          url = begun.url;
          yield { type: "begun", ...begun };
        }
        const headers = { Accept: "text/event-stream", "Last-Event-ID": last };
        const { status, body } = await this.call(url, { headers, signal: line.signal });
        if (status === 204) return;
        yield { type: "open" };
        for await (const { id, event, data, retry } of blocks(body, line)) {
          if (retry >= 0) least = Math.min(60, retry / 1000);
          if (id > last) [last, tried] = [+id, 1];
          else if (id) continue;
          if (!data) continue;
          const value = JSON.parse(data);
          if (event === "ticket") url = value.url;
          else yield { type: event ?? ("token" in value ? "token" : "error"), id: last, ...value };
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
      signal?.throwIfAborted();
      await new Promise((wake) => { timer(seconds * 1000, signal).signal.onabort = wake; });
    }
  }
}

/** Ends `ms` after it was last wound, or with `outer`. */
function timer(ms, outer) {
  const own = new AbortController();
  let id;
  const end = () => { clearTimeout(id); outer?.removeEventListener("abort", end); own.abort(); };
  const wind = () => { clearTimeout(id); id = setTimeout(end, ms); };
  outer?.addEventListener("abort", end);
  wind();
  return { signal: own.signal, wind, end };
}

/** The blocks of the stream, of lines `name: value`. */
async function* blocks(body, line) {
  const [reader, decoder] = [body.getReader(), new TextDecoder()];
  for (let rest = "", piece; !(piece = await reader.read()).done;) {
    line.wind();
    const found = (rest + decoder.decode(piece.value, { stream: true })).split(/\r?\n\r?\n/);
    rest = found.pop();
    for (const block of found) yield Object.fromEntries(block.split(/\r?\n/).map((text) => text.split(/: ?(.*)/s)));
    line.signal.throwIfAborted(); // a reader slower than SILENCE: read() would never settle in Node
  }
}
