/** Elements of the page, and what is done to them from several places. */

export const find = (id) => document.getElementById(id);

const [answers, form, said] = ["answers", "question", "said"].map(find);
const NEAR = 40; // pixels from the end at which a reader counts as being there

export function made(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Tells a screen reader, which must not be flooded with every token. */
export function say(text) {
  said.textContent = text;
}

/** Writes into the answers, and keeps their end in sight for a reader who was there. */
export function keepingEnd(write) {
  const follow = below() < NEAR;
  write();
  if (follow) showEnd();
}

export function showEnd() {
  answers.scrollTop = answers.scrollHeight;
  window.scrollBy(0, Math.max(0, belowWindow()));
}

/** Pixels of the answers that lie below what can be seen. */
function below() {
  return Math.max(answers.scrollHeight - answers.scrollTop - answers.clientHeight, belowWindow());
}

/** The same for narrow screens: the page itself scrolls there, and the form may lie over its lower end. */
function belowWindow() {
  return answers.getBoundingClientRect().bottom - Math.min(form.getBoundingClientRect().top, window.innerHeight);
}
