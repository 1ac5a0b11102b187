/** One question with its answer, on the page. */

import { keepingEnd, made, say } from "./elements.js";

const ENDS = new Set(["complete", "failed", "stopped", "interrupted"]);
const REASONS = {
  rate_limited: "The gateway is busy (rate limited).",
  gateway_unavailable: "The gateway cannot be reached.",
  answer_cut: "The gateway broke off.",
};
const ENDINGS = {
  length: "The answer reached its length limit.",
  content_filter: "The gateway's content filter ended the answer.",
  tool_calls: "The model asked for a tool, which this page does not have.",
};
const DELIVERIES = {
  delivered: "In the transcript.",
  pending: "On its way into the transcript…",
  parked: "Not in the transcript yet.",
};
const ELSEWHERE = "Asked elsewhere.";

export class Answer {
  id = null; // of its stream, once there is one; as are url and stream
  url = null;
  stream = null;
  wake = null; // ends the wait for another try to ask
  began = null; // seconds since 1970, by the server's clock
  text = "";
  isMine = false; // asked or stopped on this page
  isWhole = true; // once the answer has ended: whether `text` is all of it
  element = document.createElement("li");
  #question = null; #asked; #box; #text; #note; #way; #delivery; #onChange;
  #countdown; #unwritten = ""; #frame = 0; #stopping = false;

  /**
   * `question` is null where it is not known; `state` is `waiting`, or `loading` for an old answer. `onChange` is
   * called with this answer whenever its state or its text is another.
   */
  constructor(question, state, onChange) {
    this.#onChange = onChange;
    this.#asked = made("p", "question");
    this.#box = made("div", "answer");
    this.#text = made("p", "answer-text");
    this.#note = made("p", "answer-note");
    this.#way = made("p", "answer-delivery");
    this.#box.append(this.#text, this.#note, this.#way);
    this.element.append(this.#asked, this.#box);
    this.question = question;
    this.show(state);
  }

  get question() { return this.#question; }

  set question(question) {
    this.#question = question;
    this.#asked.textContent = question ?? ELSEWHERE;
    this.#asked.classList.toggle("elsewhere", question === null);
  }

  get state() { return this.#box.dataset.state; }
  get note() { return this.#note.textContent; }
  get hasEnded() { return ENDS.has(this.state); }
  get canStop() { return !this.hasEnded && this.state !== "loading" && !this.#stopping; }

  /** Whether no more is to be learned of its way into the transcript. */
  get isSettled() { return this.#delivery === null || this.#delivery?.state === "delivered"; }

  /** Its way into the transcript, as the server tells it: {state, reason}; null when it has none. */
  set delivery(delivery) {
    const wasParked = this.#delivery?.state === "parked";
    const isParked = delivery?.state === "parked";
    this.#delivery = delivery;
    this.#way.dataset.state = delivery?.state ?? "none";
    const words = delivery === null ? "" : DELIVERIES[delivery.state];
    this.#tellWay(isParked && delivery.reason ? `${words} ${delivery.reason}` : words);
    if (isParked !== wasParked) say(this.#way.textContent); // what goes well needs no words
  }

  /** No one looks any more how far it is. */
  notFollowed() {
    if (this.#delivery?.state === "pending") this.#tellWay("Not in the transcript when last looked.");
  }

  show(state, note = "") {
    clearInterval(this.#countdown);
    this.#box.dataset.state = state;
    if (this.note !== note) keepingEnd(() => { this.#note.textContent = note; });
    this.#onChange(this);
  }

  // What a Stream tells.

  opened() {
    if (this.state === "reconnecting") this.#goOn();
  }

  token(text) {
    if (["waiting", "retrying", "reconnecting"].includes(this.state)) this.show("streaming");
    this.text += text;
    this.#unwritten += text;
    this.#frame ||= requestAnimationFrame(() => this.#write());
    this.#onChange(this);
  }

  status({ in: seconds, reason }) {
    if (!this.#stopping) this.retrying(seconds, REASONS[reason] ?? "The gateway failed.");
  }

  lost() {
    if (this.state === "reconnecting") return;
    this.show("reconnecting", "Reconnecting…");
    say(this.note);
  }

  /** `text` is all of it, for who has not read it token by token. */
  ended({ status, finish_reason: reason, error, text }) {
    if (text?.startsWith(this.text)) this.token(text.slice(this.text.length));
    else if (text !== undefined) this.isWhole = false; // a crash has lost what was shown here
    this.#write();
    if (status === "complete") this.show("complete", ENDINGS[reason]);
    else if (status === "cancelled") this.show("stopped", "Stopped.");
    else if (status === "interrupted") this.show("interrupted", "The server had to stop. Ask again.");
    else this.show("failed", error ?? "The answer failed.");
  }

  gaveUp(words) {
    this.#write();
    this.isWhole = false;
    this.show("interrupted", words);
  }

  // What the conversation tells.

  retrying(seconds, why) {
    const until = performance.now() + seconds * 1000;
    const tell = () => {
      const left = Math.max(0, Math.ceil((until - performance.now()) / 1000));
      this.#note.textContent = `${why} Trying again in ${left} s…`;
    };
    this.show("retrying");
    keepingEnd(tell);
    say(this.note);
    this.#countdown = setInterval(tell, 500);
  }

  stopping() {
    this.#stopping = true;
    this.#goOn();
    this.wake?.();
  }

  /** The server could not be told to stop. */
  notStopped(words) {
    if (this.hasEnded) return;
    this.#stopping = false;
    this.#goOn(`It could not be stopped. ${words}`);
  }

  /** Nothing was begun. */
  refused(words) {
    this.show("failed", words);
  }

  #goOn(note = "") {
    if (this.#stopping) this.show("stopping", "Stopping…");
    else this.show(this.text ? "streaming" : "waiting", note);
  }

  #tellWay(words) {
    if (this.text && this.#way.textContent !== words) keepingEnd(() => { this.#way.textContent = words; });
  }

  /** All tokens of a frame are one write; nothing that was written is written again. */
  #write() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (!this.#unwritten) return;
    keepingEnd(() => this.#text.append(this.#unwritten));
    this.#unwritten = "";
  }
}
