/** Asks about the order; the browser's own EventSource brings the answer, and comes back by itself when it is cut off. */

const form = document.getElementById("chat");
const talk = document.getElementById("talk");

form.addEventListener("submit", (event) => {
  if (event.submitter?.name === "plain") return;
  event.preventDefault();
  ask(form.question.value);
  form.question.value = "";
});

async function ask(question) {
  line(question, "question");
  const { conversation, instruction, streams } = form.dataset;
  const messages = [{ role: "system", content: instruction }, { role: "user", content: question }];
  const response = await fetch(streams, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-") },
    body: JSON.stringify({ conversationId: conversation, messages }),
  });
  const begun = await response.json();
  if (response.ok) follow(begun.url, line("", "answer"));
  else complain(begun.error);
}

function follow(url, answer) {
  let last = 0;
  const source = new EventSource(url);
  source.onmessage = ({ data, lastEventId }) => {
    if (Number(lastEventId) <= last) return;
    last = Number(lastEventId);
    const { token, error } = JSON.parse(data);
    if (error) complain(error);
    else answer.append(token);
  };
  source.addEventListener("done", ({ data }) => {
    source.close();
    answer.dataset.state = JSON.parse(data).status;
  });
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) complain("The connection was lost. Reload the page.");
  };
}

function line(text, kind) {
  const paragraph = talk.appendChild(document.createElement("p"));
  paragraph.className = kind;
  paragraph.textContent = text;
  return paragraph;
}

function complain(words) {
  line(words, "trouble").role = "alert";
}
