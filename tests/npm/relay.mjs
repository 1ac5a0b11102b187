// Reads one answer with the relay's own client and prints each event as a line of JSON. "abort" on stdin ends it,
// "cancel" the answer. Arguments: the module, and {base, options, question} or {base, options, url}.
import { createInterface } from "node:readline";

const { Relay } = await import(process.argv[2]);
const { base, options, question, url } = JSON.parse(process.argv[3]);
const relay = new Relay(base, options);
const stop = new AbortController();
const tell = (event) => console.log(JSON.stringify(event));
let place = url;

createInterface({ input: process.stdin }).on("line", (line) => (line === "abort" ? stop.abort() : relay.cancel(place)));
try {
  const given = { signal: stop.signal };
  for await (const event of question ? relay.ask(question, given) : relay.follow(url, given)) {
    place = event.url ?? place;
    tell({ ...event, error: event.error?.message ?? event.error, status: event.error?.status ?? event.status });
  }
  tell({ type: "end" });
} catch (error) {
  tell({ type: "thrown", name: error.name, code: error.code });
}
process.exit();
