/** The page: ask, watch the answer come, ask on, stop; and the transcript beside it. */

import { Conversation } from "./conversation.js";
import { find, say } from "./elements.js";
import { askForKey } from "./key.js";
import { Transcript } from "./transcript.js";

const [prompt, ask, stop, answers, conversationId, trouble] =
  ["prompt", "ask", "stop", "answers", "conversation-id", "trouble"].map(find);

const config = await (await fetch("page/config.json")).json();
if (config.needs_key) await askForKey();
const transcript = new Transcript(config, find("transcript-text"), find("transcript-state"));
let conversation = null;

/** Opens a conversation; its id goes into the address, so that a reload and another window find the way back. */
function open(id) {
  conversation?.leave();
  answers.replaceChildren();
  trouble.textContent = "";
  conversationId.value = id;
  history.replaceState(null, "", `?${new URLSearchParams({ conversation: id })}`);
  conversation = new Conversation(id, answers, { changed, finished, trouble: (words) => { trouble.textContent = words; } });
  transcript.follow(conversation);
  changed();
}

function changed() {
  if (conversation === null) return;
  ask.disabled = conversation.isBusy;
  stop.disabled = !conversation.canStop;
  transcript.changed();
}

/** An answer that was followed has ended. */
function finished(answer) {
  say(answer.state === "complete" ? `The answer: ${answer.text} ${answer.note}` : answer.note);
  // Buttons that go out of use drop the focus, at once or a little later; who is elsewhere stays there.
  const dropped = answer.isMine && [ask, stop, document.body].includes(document.activeElement);
  if (dropped) prompt.focus({ preventScroll: true });
}

function submit() {
  const question = prompt.value.trim();
  if (!question || conversation.isBusy) return;
  prompt.value = "";
  conversation.ask(question);
}

function change() {
  const id = conversationId.value.trim() || freshId();
  if (id === conversation.id) conversationId.value = id;
  else open(id);
}

const freshId = () => `web-${crypto.getRandomValues(new Uint32Array(2)).join("").slice(0, 12)}`;

find("question").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
prompt.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) conversation.stop();
});
stop.addEventListener("click", () => conversation.stop());
find("new-conversation").addEventListener("click", () => { open(freshId()); prompt.focus(); });
conversationId.addEventListener("change", change);
document.addEventListener("visibilitychange", () => conversation.lookAround());
window.addEventListener("storage", () => conversation.nameQuestions());

open(new URLSearchParams(location.search).get("conversation")?.trim() || (config.conversation_id ?? freshId()));
prompt.focus({ preventScroll: true });
