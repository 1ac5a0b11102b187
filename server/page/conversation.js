/** One conversation: its answers in order, asking on, stopping, and noticing what is asked elsewhere. */

import { Answer } from "./answer.js";
import { Deliveries } from "./deliveries.js";
import { keepingEnd, say, showEnd } from "./elements.js";
import { keepQuestion, questionOf } from "./questions.js";
import { pause, RelayError } from "./relay.js";
import { begin, cancel, list, look, persist } from "./server.js";
import { explain, Stream } from "./stream.js";

const LOOK_INTERVAL = 2; // seconds between two looks for streams that were begun elsewhere
const MAX_MESSAGES = 100; // of the conversation so far, sent with a question
const MAX_CHARS = 100_000; // in all these messages; half of what the server takes

export class Conversation {
  answers = []; // oldest first
  #place; #hears; #loaded; #timer; #asking = false; #looking = false; #failures = 0; #left = false;
  #deliveries = new Deliveries(() => this.answers);

  /** `hears` is told by its methods: changed; finished, with an answer that was not old; trouble, with words or none. */
  constructor(id, place, hears) {
    [this.id, this.#place, this.#hears] = [id, place, hears];
    this.#loaded = this.#look().then(() => this.#lookLater());
  }

  get isBusy() { return this.answers.some((answer) => !answer.hasEnded); }
  get canStop() { return this.answers.some((answer) => answer.canStop); }

  /** Reads no more. What is being answered goes on without this page. */
  leave() {
    this.#left = true;
    clearTimeout(this.#timer);
    this.#deliveries.leave();
    for (const { stream } of this.answers) stream?.close();
  }

  async ask(question) {
    const answer = this.#made(question, "waiting");
    answer.isMine = true;
    this.#insert(answer, null);
    showEnd();
    say("Asked. Waiting for the answer.");
    this.#hears.changed();
    await this.#loaded; // what was said before goes with the question
    if (this.#left) return;
    try {
      await this.#begin(answer);
    } catch (refusal) {
      if (!(refusal instanceof RelayError)) throw refusal;
      if (answer.canStop) answer.refused(refusal.message);
      else answer.ended({ status: "cancelled" }); // it was stopped while it could not be asked
    } finally {
      this.#asking = false;
    }
  }

  stop() {
    for (const answer of this.answers.filter(({ canStop }) => canStop)) {
      answer.isMine = true;
      answer.stopping();
      if (answer.url !== null) this.#cancel(answer);
    }
  }

  /** Looks now for streams that were begun elsewhere, and again and again while someone sees the page. */
  async lookAround() {
    if (!document.hidden && !this.isBusy && !this.#looking) await this.#look();
    this.#lookLater();
  }

  /** What another window of this browser has asked may be known only now. */
  nameQuestions() {
    for (const answer of this.answers) {
      if (answer.question === null) answer.question = questionOf(answer.id);
    }
  }

  async #begin(answer) {
    this.#asking = true;
    const key = freshKey(); // the same in each try: a POST whose answer was lost asks nothing twice
    const body = { conversationId: this.id, ...this.#body(answer.question) };
    const stream = await persist(() => begin(body, key), (...why) => this.#wait(answer, ...why));
    keepQuestion(stream.id, answer.question);
    if (this.#left) return;
    const stopped = !answer.canStop;
    this.#follow(answer, stream);
    if (stopped) this.#cancel(answer); // Stop came before there was anything to stop
    if (this.answers.find(({ id }) => id !== null) === answer) this.#learnBegin(answer);
  }

  /** Passes the time until the next try, and says so; false when it was stopped. */
  async #wait(answer, seconds, refusal) {
    if (!answer.canStop) return false;
    answer.retrying(seconds, refusal.message);
    await new Promise((resolve) => {
      answer.wake = resolve;
      setTimeout(resolve, seconds * 1000);
    });
    return answer.canStop && !this.#left;
  }

  /** The question as the gateway wants it: after what was said before, roles in turn, as much of it as goes in. */
  #body(question) {
    const messages = [{ role: "user", content: question }];
    let chars = question.length;
    for (const { question: asked, text, state } of [...this.answers].reverse()) {
      if (state !== "complete" || !asked || !text.trim()) continue;
      chars += asked.length + text.length;
      if (messages.length + 2 > MAX_MESSAGES || chars > MAX_CHARS) break;
      messages.unshift({ role: "user", content: asked }, { role: "assistant", content: text });
    }
    return messages.length > 1 ? { messages } : { prompt: question };
  }

  async #cancel(answer) {
    try {
      await persist(() => cancel(answer.url));
    } catch (refusal) {
      answer.notStopped(explain(refusal));
    }
  }

  #follow(answer, { id, url, began = null }) {
    [answer.id, answer.url, answer.began] = [id, url, began];
    answer.stream = new Stream(url, answer);
  }

  /** Where this conversation's text begins in the transcript, which may hold older text. */
  async #learnBegin(answer) {
    answer.began = (await persist(() => look(answer.url)).catch(() => null))?.began ?? null;
    if (!this.#left) this.#hears.changed();
  }

  async #look() {
    this.#looking = true;
    try {
      const streams = await list(this.id);
      if (this.#left) return;
      this.#failures = 0;
      this.#hears.trouble("");
      // While a POST is on its way, its stream may be among these and could not be told from others.
      if (!this.#asking) this.#show(streams);
    } catch (refusal) {
      if (!(refusal instanceof RelayError)) throw refusal;
      this.#failures += 1;
      if (!this.#left) this.#hears.trouble(`What was asked elsewhere cannot be shown right now. ${refusal.message}`);
    } finally {
      this.#looking = false;
    }
  }

  #lookLater() {
    if (this.#left) return;
    const seconds = LOOK_INTERVAL + (this.#failures ? pause(this.#failures) : 0);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.lookAround(), seconds * 1000);
  }

  /** Shows those of `streams` that are not shown yet, in their order. */
  #show(streams) {
    const known = new Map(this.answers.map((answer) => [answer.id, answer]));
    const fresh = [];
    let next = this.answers.find((answer) => answer.id === null && !answer.hasEnded) ?? null; // waits for this look
    keepingEnd(() => {
      for (const stream of [...streams].reverse()) {
        let answer = known.get(stream.id);
        if (answer === undefined) {
          answer = this.#made(questionOf(stream.id), stream.status === "running" ? "waiting" : "loading");
          [answer.id, answer.url, answer.began] = [stream.id, stream.url, stream.began];
          this.#insert(answer, next);
          fresh.push([answer, stream]);
        }
        next = answer;
      }
    });
    if (!fresh.length) return;
    for (const [answer, stream] of fresh) {
      if (stream.status === "running") this.#follow(answer, stream);
      else this.#load(answer);
    }
    this.#hears.changed();
  }

  async #load(answer) {
    try {
      const state = await persist(() => look(answer.url));
      answer.ended(state);
      answer.delivery = state.transcript ?? null;
    } catch (refusal) {
      answer.gaveUp(explain(refusal));
    }
  }

  #made(question, state) {
    return new Answer(question, state, (answer) => this.#heard(answer));
  }

  #insert(answer, next) {
    this.answers.splice(next ? this.answers.indexOf(next) : this.answers.length, 0, answer);
    this.#place.insertBefore(answer.element, next?.element ?? null);
  }

  #heard(answer) {
    if (this.#left) return;
    if (answer.hasEnded) this.#deliveries.follow();
    if (answer.hasEnded && (answer.isMine || answer.stream)) this.#hears.finished(answer);
    this.#hears.changed();
  }
}

function freshKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
