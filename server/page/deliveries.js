/** How far the answers of a conversation are on their way into its transcript. */

import { look } from "./server.js";

const TRIES = 25; // in a row; about five minutes
const [FIRST, LONGEST] = [0.5, 15]; // seconds between two looks; doubled each time, and a little less, by chance

export class Deliveries {
  #answers; #timer; #looking = false; #tried = 0; #left = false;

  /** `answers` gives those of the conversation, oldest first. */
  constructor(answers) { this.#answers = answers; }

  /** Looks until all that has ended has arrived, less and less often, and not for ever. */
  follow() {
    this.#tried = 0;
    if (!this.#looking) this.#later();
  }

  leave() {
    this.#left = true;
    clearTimeout(this.#timer);
  }

  #later() {
    clearTimeout(this.#timer);
    if (this.#left || !this.#open().length) return;
    this.#tried += 1;
    if (this.#tried <= TRIES) this.#timer = setTimeout(() => this.#look(), interval(this.#tried) * 1000);
    else for (const answer of this.#open()) answer.notFollowed();
  }

  #open() {
    return this.#answers().filter(({ hasEnded, url, isSettled }) => hasEnded && url && !isSettled);
  }

  /** Answers arrive in order: what holds up the oldest holds up all behind it, without a look at each. */
  async #look() {
    this.#looking = true;
    try {
      for (let [first, ...rest] = this.#open(); first; [first, ...rest] = this.#open()) {
        const delivery = await this.#deliveryOf(first);
        if (this.#left || delivery === undefined) return;
        first.delivery = delivery;
        if (first.isSettled) continue;
        for (const answer of rest) answer.delivery = delivery;
        return;
      }
    } finally {
      this.#looking = false;
      this.#later();
    }
  }

  /** Undefined when it cannot be had right now. */
  async #deliveryOf(answer) {
    try {
      return (await look(answer.url))?.transcript ?? null;
    } catch (refusal) {
      return refusal.passes ? undefined : null; // null: the server no longer has it
    }
  }
}

const interval = (tried) => Math.min(LONGEST, FIRST * 2 ** (tried - 1)) * (0.5 + Math.random() / 2);
