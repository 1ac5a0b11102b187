/**
 * Follows one stream with the browser's own EventSource.
 *
 * A lost connection is the browser's to mend: it comes back with Last-Event-ID. After an error status it gives up for
 * good (WHATWG HTML, 9.2.3), without a word on which it was; then this asks, and opens the stream again behind the last
 * event that came. Where addresses carry tickets, it goes on with the latest: the first one's time may be over.
 */

import { look, pause, sleep } from "./server.js";

const TRIES = 10; // in a row without any event; about a minute
const LOST = "The connection was lost and does not come back. Reload the page to try again.";
const GONE = "The server no longer has this answer. Ask again.";

/** Why a stream cannot be read. */
export const explain = (refusal) => (refusal.status === 404 ? GONE : refusal.message);

export class Stream {
  #url; #hears; #source = null; #closed = false;
  #last = 0; // id of the last event that was taken
  #tried = 0;
  #error = null; // comes before `done`, maybe on another connection

  /** `hears` is told by its methods: opened, token, status, lost, ended (what `done` says, and the error), gaveUp. */
  constructor(url, hears) {
    [this.#url, this.#hears] = [url, hears];
    this.#open();
  }

  close() {
    this.#closed = true;
    this.#source.close();
  }

  #open() {
    const address = new URL(this.#url, location.href);
    if (this.#last) address.searchParams.set("after", this.#last);
    const source = this.#source = new EventSource(address);
    source.onopen = () => this.#hears.opened();
    source.onmessage = (event) => this.#once(event, (value) => {
      if ("token" in value) this.#hears.token(value.token);
      else if ("error" in value) this.#error = value.error;
    });
    source.addEventListener("ticket", ({ data }) => { this.#url = JSON.parse(data).url; });
    source.addEventListener("status", ({ data }) => this.#hears.status(JSON.parse(data)));
    source.addEventListener("done", (event) => this.#once(event, (value) => this.#end({ ...value, error: this.#error })));
    source.onerror = () => {
      this.#hears.lost();
      if (source.readyState === EventSource.CLOSED) this.#comeBack();
    };
  }

  /** Takes an event that has not been taken before: a server may send again what is not known to have arrived. */
  #once({ data, lastEventId }, take) {
    const id = Number(lastEventId);
    if (id <= this.#last) return;
    [this.#last, this.#tried] = [id, 0];
    take(JSON.parse(data));
  }

  #end(value) {
    this.close();
    this.#hears.ended(value);
  }

  async #comeBack() {
    let retryAfter = 0;
    while (this.#tried < TRIES) {
      this.#tried += 1;
      await sleep(pause(this.#tried, retryAfter));
      if (this.#closed) return;
      try {
        const state = await look(this.#url);
        if (this.#closed) return;
        this.#url = state.url;
        return state.status === "running" ? this.#open() : this.#end(state);
      } catch (refusal) {
        if (this.#closed) return;
        if (!refusal.passes) return this.#giveUp(explain(refusal));
        retryAfter = refusal.retryAfter;
      }
    }
    this.#giveUp(LOST);
  }

  #giveUp(words) {
    this.close();
    this.#hears.gaveUp(words);
  }
}
