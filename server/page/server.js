/** What the page asks of the server, one call each; and how it asks again. */

import { askForKey, currentKey, keyHeaders } from "./key.js";

const TIMEOUT = 15_000; // milliseconds; each of these calls is answered at once, or not at all
const PASSING = new Set([0, 408, 429, 500, 502, 503, 504]); // statuses after which the same call may succeed
const TRIES = 5;
const FIRST_PAUSE = 0.5; // seconds; doubled each time
const LONGEST_PAUSE = 15; // seconds
const LONGEST_RETRY_AFTER = 60; // seconds

/** A refusal in the server's own words. Status 0: no answer came. */
export class Refusal extends Error {
  constructor(words, status, retryAfter = 0) {
    super(words);
    [this.status, this.retryAfter] = [status, retryAfter];
  }

  get passes() { return PASSING.has(this.status); }
}

/** Asks. The same key again gives the same stream: {id, url}. */
export function begin(body, key) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  return call("streams", { method: "POST", headers, body: JSON.stringify(body) });
}

/** A stream's state and its text so far. */
export const look = (url) => call(url, { headers: { Accept: "application/json" } });

export const cancel = (url) => call(url, { method: "DELETE" });

/** All streams of a conversation, oldest first. */
export async function list(conversationId) {
  return (await call(`conversations/${encodeURIComponent(conversationId)}/streams`))?.streams ?? [];
}

/** Raises Refusal; but a key that is not taken is asked for again, and the call goes on with the next one. */
async function call(address, options = {}) {
  const key = currentKey();
  let response, body;
  try {
    const headers = { ...options.headers, ...keyHeaders() };
    response = await fetch(address, { ...options, headers, signal: AbortSignal.timeout(TIMEOUT) });
    body = await response.text();
  } catch {
    throw new Refusal("The server cannot be reached. Is it running?", 0);
  }
  const value = parsed(body);
  if (response.ok) return value;
  if (response.status === 401) {
    if (key === currentKey()) await askForKey(key === null ? "" : "The server does not take this key.");
    return call(address, options);
  }
  const words = value?.error ?? `The server answered with status ${response.status}.`;
  throw new Refusal(words, response.status, Number(response.headers.get("Retry-After")) || 0);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a 204, or a proxy's own page
  }
}

/**
 * Calls `task` until it succeeds, is refused for good, or was tried TRIES times; raises the last Refusal.
 * `wait(seconds, refusal)` passes the time in between; when it gives false, no further try is made.
 */
export async function persist(task, wait = sleep) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await task();
    } catch (refusal) {
      if (!refusal.passes || tried === TRIES) throw refusal;
      if (await wait(pause(tried, refusal.retryAfter), refusal) === false) throw refusal;
    }
  }
}

/** Seconds until the next try. The jitter keeps pages that were cut off together from coming back together. */
export function pause(tried, retryAfter = 0) {
  const backoff = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tried - 1));
  return Math.min(retryAfter, LONGEST_RETRY_AFTER) + backoff * (0.5 + Math.random() / 2);
}

export const sleep = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });
