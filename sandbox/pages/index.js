/** Lists the conversations, again each second, and the faults that can be ordered. */

const REFRESH = 1000; // milliseconds

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

async function showConversations() {
  const conversations = await (await fetch("/sandbox/conversations")).json();
  if (!conversations.length) return;
  document.querySelector("#conversations").replaceChildren(...conversations.map(({ id, messages, links }) => {
    const item = document.createElement("li");
    const link = element("a", id);
    link.href = `/sandbox/conversations/${encodeURIComponent(id)}/page`;
    item.append(link, ` – ${messages} messages, ${links.open} of ${links.opened} links open`);
    return item;
  }));
}

async function showFaults() {
  const { known } = await (await fetch("/sandbox/faults")).json();
  for (const [place, faults] of Object.entries(known)) {
    const table = document.createElement("table");
    for (const [name, meaning] of Object.entries(faults)) {
      const row = table.insertRow();
      row.append(element("th", name), element("td", meaning));
    }
    document.querySelector("#faults").append(element("h3", place), table);
  }
}

await showFaults();
await showConversations();
setInterval(showConversations, REFRESH);
