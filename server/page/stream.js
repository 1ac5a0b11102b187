/** Follows one stream for the page. What relay.js cannot mend is looked at as a whole. */

import { look, relay, withKey } from "./server.js";

const LOST = "The connection was lost and does not come back. Reload the page to try again.";
const GONE = "The server no longer has this answer. Ask again.";

/** Why a stream cannot be read. */
export const explain = (refusal) => (refusal.status === 404 ? GONE : refusal.message);

export class Stream {
  #url; #hears; #leaving = new AbortController();
  #last = 0; // id of the last event that was taken
  #error = null; // comes before `done`, maybe on another connection

  /** `hears` is told by its methods: opened, token, status, lost, ended (what `done` says, and the error), gaveUp. */
  constructor(url, hears) {
    [this.#url, this.#hears] = [url, hears];
    withKey(() => this.#read()).catch((error) => this.#fail(error));
  }

  close() { this.#leaving.abort(); }

  async #read() {
    let lost = 0; // times in a row
    for await (const event of relay.follow(this.#url, { after: this.#last, signal: this.#leaving.signal })) {
      lost = event.type === "lost" ? lost + 1 : 0;
      this.#last = event.id ?? this.#last;
      switch (event.type) {
        case "open": this.#hears.opened(); break;
        case "token": this.#hears.token(event.token); break;
        case "status": this.#hears.status(event); break;
        case "error": this.#error = event.error; break;
        case "done": this.#hears.ended({ ...event, error: this.#error }); break;
        case "lost": this.#hears.lost();
      }
      // An answer that has ended can be shown even where no stream gets through.
      const state = lost > 1 ? await look(this.#url).catch(() => null) : null;
      if (state !== null && state.status !== "running") return this.#hears.ended(state);
    }
  }

  #fail(error) {
    if (!this.#leaving.signal.aborted) this.#hears.gaveUp(error.passes ? LOST : explain(error));
  }
}
