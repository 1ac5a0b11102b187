/** The page: ask, watch the answer come, ask on, stop; and the transcript beside it. */

import { readEvents } from "./sse.js";
import { Transcript } from "./transcript.js";

const find = (id) => document.getElementById(id);
const [prompt, ask, stop, answers, conversationId, said] =
  ["prompt", "ask", "stop", "answers", "conversation-id", "said"].map(find);

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
const LOST = "The connection was lost before the answer was finished. Ask again.";

let turns = []; // {question, answer} of this conversation; answer "" where none came
let current = null; // the answer that is being read
const config = await (await fetch("/page/config.json")).json();
const transcript = new Transcript(config, find("transcript-text"), find("transcript-state"));

/** One question with its answer, on the page. */
class Answer {
  #text; #note; #box; #countdown = null;

  constructor(question) {
    this.question = question;
    this.text = "";
    this.abort = new AbortController();
    const item = document.createElement("li");
    item.append(made("p", "question", question));
    this.#box = made("div", "answer");
    this.#text = made("p", "answer-text");
    this.#note = made("p", "answer-note");
    this.#box.append(this.#text, this.#note);
    item.append(this.#box);
    answers.append(item);
    this.show("waiting");
    item.scrollIntoView({ block: "nearest" });
  }

  show(state, note = "") {
    clearInterval(this.#countdown);
    this.#box.dataset.state = state;
    this.#note.textContent = note;
  }

  get state() { return this.#box.dataset.state; }

  add(token) {
    const follow = isAtEnd(answers);
    if (this.state !== "streaming") this.show("streaming");
    this.text += token;
    this.#text.append(token);
    if (follow) answers.scrollTop = answers.scrollHeight;
  }

  retrying({ in: seconds, reason }) {
    const until = performance.now() + seconds * 1000;
    const why = REASONS[reason] ?? "The gateway failed.";
    const tell = () => {
      const left = Math.max(0, Math.ceil((until - performance.now()) / 1000));
      this.#note.textContent = `${why} Trying again in ${left} s…`;
    };
    this.show("retrying");
    tell();
    say(this.#note.textContent);
    this.#countdown = setInterval(tell, 500);
  }

  /** Takes one event of the stream. */
  take({ event, data }) {
    const value = JSON.parse(data);
    if (event === "status") this.retrying(value);
    else if (event === "done") this.end(value);
    else if ("token" in value) this.add(value.token);
    else if ("error" in value) this.show("failed", value.error);
  }

  end({ status, finish_reason: reason }) {
    if (status === "complete") this.show("complete", ENDINGS[reason] ?? "");
    else if (status === "cancelled") this.show("stopped", "Stopped.");
    else if (status === "interrupted") this.show("interrupted", "The server had to stop. Ask again.");
  }
}

function made(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Tells a screen reader, which must not be flooded with every token. */
function say(text) {
  said.textContent = text;
}

function isAtEnd(element) {
  return element.scrollHeight - element.scrollTop - element.clientHeight < 40;
}

/** The conversation so far and the new question, as the gateway wants them: roles in turn. */
function body(question) {
  const before = turns.filter(({ answer }) => answer).flatMap(({ question, answer }) => [
    { role: "user", content: question }, { role: "assistant", content: answer },
  ]);
  const asked = before.length ? { messages: [...before, { role: "user", content: question }] } : { prompt: question };
  return { conversationId: conversationId.value.trim(), ...asked };
}

async function read(answer) {
  const response = await fetch("/stream-llm", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body(answer.question)),
    signal: answer.abort.signal,
  });
  if (!response.ok) {
    const refusal = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
    answer.show("failed", refusal.error);
    return;
  }
  for await (const event of readEvents(response)) answer.take(event);
  if (["waiting", "streaming", "retrying"].includes(answer.state)) answer.show("interrupted", LOST);
}

async function submit() {
  const question = prompt.value.trim();
  if (!question || current) return;
  const answer = current = new Answer(question);
  prompt.value = "";
  [ask.disabled, stop.disabled, conversationId.disabled] = [true, false, true];
  transcript.begin();
  say("Asked. Waiting for the answer.");
  try {
    await read(answer);
  } catch (error) {
    if (error.name === "AbortError") answer.show("stopped", "Stopped.");
    else answer.show("interrupted", answer.text ? LOST : "The server cannot be reached. Is it running?");
  }
  finish(answer);
}

function finish(answer) {
  if (current !== answer) return; // a new conversation has begun
  current = null;
  turns.push({ question: answer.question, answer: answer.text });
  transcript.expect(turns.map((turn) => turn.answer).join(""), answer.state === "stopped");
  [ask.disabled, stop.disabled, conversationId.disabled] = [false, true, false];
  say(answer.state === "complete" ? `The answer: ${answer.text}` : document.querySelector("#answers li:last-child .answer-note").textContent);
  prompt.focus();
}

function stopNow() {
  current?.abort.abort();
}

function beginConversation(id) {
  const left = current;
  current = null;
  left?.abort.abort();
  turns = [];
  answers.replaceChildren();
  conversationId.value = id;
  [ask.disabled, stop.disabled, conversationId.disabled] = [false, true, false];
  transcript.follow(id);
  prompt.focus();
}

const freshId = () => `web-${crypto.getRandomValues(new Uint32Array(2)).join("").slice(0, 12)}`;

find("question").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
prompt.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stopNow(); });
stop.addEventListener("click", stopNow);
find("new-conversation").addEventListener("click", () => beginConversation(freshId()));
conversationId.addEventListener("change", () => beginConversation(conversationId.value.trim() || freshId()));
beginConversation(config.conversation_id ?? freshId());
