/** What was asked from this browser, by stream: the server keeps answers alone. */

const PLACE = "questions";
const MOST = 200; // the newest stay

export function questionOf(id) {
  return read().find(([other]) => other === id)?.[1] ?? null;
}

export function keepQuestion(id, question) {
  const kept = [...read().slice(1 - MOST), [id, question]];
  while (kept.length && !write(kept)) kept.splice(0, Math.ceil(kept.length / 2)); // storage is full: the older half goes
}

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE));
    return Array.isArray(kept) ? kept : [];
  } catch {
    return []; // storage is switched off, or someone else's
  }
}

function write(kept) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(kept));
    return true;
  } catch {
    return false;
  }
}
