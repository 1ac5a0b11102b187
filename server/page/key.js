/**
 * The key that a server may ask for. It is kept in this page's memory alone: whoever comes to this browser later, or
 * reads its storage, finds none.
 */

import { find } from "./elements.js";

const [dialog, form, field, note] = ["key-dialog", "key-form", "key", "key-note"].map(find);
let key = null;
let asking = null;

/** The key that is sent, null as long as none was asked for. */
export const currentKey = () => key;

/** Asks until there is a key. Who asks meanwhile waits for the same one. */
export function askForKey(words = "") {
  asking ??= ask(words).finally(() => { asking = null; });
  return asking;
}

function ask(words) {
  note.textContent = words;
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const given = field.value.trim();
      if (!given) return;
      key = given;
      field.value = "";
      dialog.close();
      resolve();
    };
  });
}

dialog.addEventListener("cancel", (event) => event.preventDefault()); // Escape: without a key there is nothing behind it
