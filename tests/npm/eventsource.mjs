// Follows an address with npm's eventsource and prints what comes as lines of JSON. It is closed by the server alone:
// by the 204 that meets who comes back behind `done`.
import { EventSource } from "eventsource";

const tell = (event) => console.log(JSON.stringify(event));
const source = new EventSource(process.argv[2]);

for (const type of ["message", "status", "ticket", "done"]) {
  source.addEventListener(type, ({ data, lastEventId }) => tell({ type, id: lastEventId, data: JSON.parse(data) }));
}
source.addEventListener("open", () => tell({ type: "open" }));
source.addEventListener("error", ({ code = null }) => {
  const isClosed = source.readyState === EventSource.CLOSED;
  tell({ type: isClosed ? "closed" : "lost", code });
  if (isClosed) process.exit();
});
