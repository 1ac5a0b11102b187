/** Shows one conversation's transcript as it grows. */

const id = decodeURIComponent(location.pathname.split("/").at(-2));
const text = document.querySelector("#text");
const state = document.querySelector("#state");
let count = 0;

document.querySelector("#name").textContent = id;
document.title = `Conversation ${id}`;

const events = new EventSource(`/sandbox/conversations/${encodeURIComponent(id)}/events`);
events.onopen = () => { state.textContent = "Live."; };
events.onerror = () => { state.textContent = "The connection is lost. Trying again…"; };
events.onmessage = ({ data }) => {
  text.append(JSON.parse(data).text);
  count += 1;
  document.querySelector("#count").textContent = count;
};
