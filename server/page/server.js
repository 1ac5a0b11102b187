/** What the page asks of the server, one call each; and how it asks again. */

import { askForKey, currentKey } from "./key.js";
import { pause, Relay } from "./relay.js";

const TIMEOUT = 15_000; // milliseconds; each of these calls is answered at once, or not at all
const TRIES = 5;

export const relay = new Relay(new URL("../", import.meta.url)); // under whatever prefix the page is served

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

function call(address, options) {
  return withKey(async () => {
    const response = await relay.call(address, { ...options, signal: AbortSignal.timeout(TIMEOUT) });
    return parsed(await response.text());
  });
}

/** Throws what `task` throws; but a key that is not taken is asked for again, and the task done with the next one. */
export async function withKey(task) {
  for (;;) {
    const key = relay.key = currentKey();
    try {
      return await task();
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key === currentKey()) await askForKey(key === null ? "" : "The server does not take this key.");
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a 204, or a proxy's own page
  }
}

/**
 * Calls `task` until it succeeds, is refused for good, or was tried TRIES times; throws the last RelayError.
 * `wait(seconds, error)` passes the time in between; when it gives false, no further try is made.
 */
export async function persist(task, wait = sleep) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await task();
    } catch (error) {
      if (!error.passes || tried === TRIES) throw error;
      if (await wait(pause(tried, error.retryAfter), error) === false) throw error;
    }
  }
}

const sleep = (seconds) => new Promise((wake) => { setTimeout(wake, seconds * 1000); });
