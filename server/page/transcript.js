/** The transcript beside the answers: what the sandbox has received, and whether it agrees with what was shown. */

const NEAR = 40; // pixels from the end at which a reader counts as being there

export class Transcript {
  #config; #text; #state; #conversation = null; #source = null; #frame = 0;
  #received = ""; #unwritten = "";
  #arrivals = []; // of each message: when it arrived, and how much had arrived before it

  constructor(config, text, state) {
    [this.#config, this.#text, this.#state] = [config, text, state];
  }

  /** Follows a conversation, and compares it with its answers whenever `changed` is called. */
  follow(conversation) {
    this.#source?.close();
    [this.#conversation, this.#received, this.#unwritten, this.#arrivals] = [conversation, "", "", []];
    this.#text.replaceChildren();
    if (!this.#config.transcript) return this.#say("off", "The transcript is switched off (TRANSCRIPT=off).");
    if (!this.#config.sandbox) {
      return this.#say("off", `The transcript is in Genesys Cloud's agent desktop, in conversation ${conversation.id}.`);
    }
    const address = `${this.#config.sandbox}/sandbox/conversations/${encodeURIComponent(conversation.id)}/events`;
    this.#source = new EventSource(address);
    this.#source.onmessage = ({ data }) => this.#take(JSON.parse(data));
    this.#source.onerror = () => this.#say("off", "The sandbox cannot be reached. Trying again…");
    this.#source.onopen = () => this.changed();
    this.changed();
  }

  /** The conversation has another text or state than before. */
  changed() {
    if (this.#source) this.#frame ||= requestAnimationFrame(() => this.#refresh());
  }

  #take({ text, at }) {
    this.#arrivals.push([at, this.#received.length]);
    this.#received += text;
    this.#unwritten += text;
    this.changed();
  }

  /** All that has come since the last frame is one write and one look. */
  #refresh() {
    this.#frame = 0;
    if (this.#unwritten) {
      const follow = this.#text.scrollHeight - this.#text.scrollTop - this.#text.clientHeight < NEAR;
      this.#text.append(this.#unwritten);
      this.#unwritten = "";
      if (follow) this.#text.scrollTop = this.#text.scrollHeight;
    }
    if (this.#source?.readyState === EventSource.OPEN) this.#say(...this.#compare());
  }

  #compare() {
    const answers = this.#conversation.answers.filter(({ id, hasEnded }) => id !== null || !hasEnded); // not those refused
    if (!answers.length) return ["off", this.#received ? "It holds older text than this page." : "Nothing yet."];
    const since = answers[0].began;
    const isRunning = answers.some(({ hasEnded }) => !hasEnded);
    if (since === null) return ["off", isRunning ? "The answer is on its way." : "It cannot be compared right now."];
    if (answers.some(({ hasEnded, isWhole }) => hasEnded && !isWhole)) {
      return ["off", "This page does not have all of the answers to compare."];
    }
    const shown = answers.map(({ text }) => text).join("");
    const received = this.#received.slice(this.#arrivals.find(([at]) => at >= since)?.[1] ?? this.#received.length);
    if (isRunning) {
      // Either may be ahead of the other, but no further than the running answer.
      const agrees = shown.startsWith(received) || received.startsWith(shown);
      return agrees ? ["off", "The answer is on its way."] : ["differs", "The transcript differs from the answers."];
    }
    if (received === shown) return ["agrees", "The transcript agrees with the answers."];
    const missing = shown.length - received.length;
    if (shown.startsWith(received)) return ["behind", `The transcript is ${missing} characters behind.`];
    // What is asked elsewhere is noticed a little later than its text comes here.
    if (received.startsWith(shown)) return ["ahead", `The transcript holds ${-missing} characters more than this page.`];
    return ["differs", "The transcript differs from the answers."];
  }

  #say(state, words) {
    if (this.#state.textContent === words) return; // a screen reader would read it again
    this.#state.dataset.state = state;
    this.#state.textContent = words;
  }
}
