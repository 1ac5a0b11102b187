/** The transcript beside the answers: what the sandbox has received, and whether it agrees with what was shown. */

export class Transcript {
  #config; #text; #state; #source = null; #id = null; #received = ""; #expected = null; #mayHoldMore = false;
  #before = 0; // characters that the conversation held before this page's first question

  constructor(config, text, state) {
    [this.#config, this.#text, this.#state] = [config, text, state];
  }

  /** Follows a conversation; does nothing when it is followed already. */
  follow(id) {
    if (id === this.#id) return;
    this.#source?.close();
    [this.#id, this.#received, this.#expected, this.#mayHoldMore, this.#before] = [id, "", null, false, 0];
    this.#text.replaceChildren();
    if (!this.#config.transcript) return this.#say("off", "The transcript is switched off (TRANSCRIPT=off).");
    if (!this.#config.sandbox) {
      return this.#say("off", `The transcript is in Genesys Cloud's agent desktop, in conversation ${id}.`);
    }
    this.#say("off", "Nothing yet.");
    this.#source = new EventSource(`${this.#config.sandbox}/sandbox/conversations/${encodeURIComponent(id)}/events`);
    this.#source.onmessage = ({ data }) => this.#take(JSON.parse(data).text);
    this.#source.onerror = () => this.#say("off", "The sandbox cannot be reached. Trying again…");
    this.#source.onopen = () => this.#compare();
  }

  /** A question is asked: what comes from now on is compared. */
  begin() {
    if (this.#expected === null) this.#before = this.#received.length;
  }

  /** What the page has shown in this conversation. After a stop the transcript may hold a little more. */
  expect(text, mayHoldMore) {
    [this.#expected, this.#mayHoldMore] = [text, this.#mayHoldMore || mayHoldMore];
    this.#compare();
  }

  #take(text) {
    const follow = this.#text.scrollHeight - this.#text.scrollTop - this.#text.clientHeight < 40;
    this.#received += text;
    this.#text.append(text);
    if (follow) this.#text.scrollTop = this.#text.scrollHeight;
    this.#compare();
  }

  #compare() {
    if (this.#expected === null) return this.#say("off", this.#received ? "The answer is on its way." : "Nothing yet.");
    const received = this.#received.slice(this.#before);
    const missing = this.#expected.length - received.length;
    if (received === this.#expected) this.#say("agrees", "The transcript agrees with the answers.");
    else if (this.#expected.startsWith(received)) this.#say("behind", `The transcript is ${missing} characters behind.`);
    else if (this.#mayHoldMore) this.#say("agrees", "The transcript holds a little more than was shown before the stop.");
    else this.#say("differs", "The transcript differs from the answers.");
  }

  #say(state, words) {
    if (this.#state.textContent === words) return; // a screen reader would read it again
    this.#state.dataset.state = state;
    this.#state.textContent = words;
  }
}
