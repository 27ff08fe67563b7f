/** One turn as it is drawn: the question, and the answer that types. */
import { isRunning } from "./conversations.js";
import { copy, make } from "./dom.js";
import { say, sayBlock } from "./spoken.js";
import { Typing } from "./typing.js";

/** @typedef {import("./conversations.js").Turn} Turn */

export class TurnView {
  #text = make("div", { class: "text" });
  #thought = make("div", { class: "thought" });
  #thinking = make("details", { class: "thinking", hidden: true }, make("summary", {}, "Reasoning"), this.#thought);
  #calls = make("div", { class: "calls" });
  #error = make("div", { class: "error", hidden: true });
  #facts = make("span", { class: "facts" });
  #copy = make("button", { type: "button", class: "quiet", click: () => copy(this.turn.text, this.#copy) }, "Copy answer");
  #again;
  #epoch;
  #typing;
  #spoken;

  /**
   * @param {Turn} turn
   * @param {() => void} again Asks the same once more.
   */
  constructor(turn, again) {
    this.turn = turn;
    this.#again = make("button", { type: "button", class: "quiet again", click: again }, "Ask again");
    this.#spoken = !isRunning(turn); // what has ended long ago is there to be read, not news
    this.#epoch = turn.epoch;
    this.#typing = this.#newTyping();
    this.#retry = again;
    this.element = make(
      "article",
      { class: "turn" },
      make("h2", { class: "question" }, turn.question),
      make("div", { class: "answer" }, this.#thinking, this.#text, this.#calls, this.#error),
      make("footer", {}, this.#facts, this.#copy, this.#again),
    );
  }

  #retry;

  /** Draw what has changed. @param {Turn} turn @param {boolean} last */
  draw(turn, last) {
    this.turn = turn;
    if (this.#epoch !== turn.epoch) {
      // Another answer, which does not go on from what is shown.
      this.#epoch = turn.epoch;
      this.#text.replaceChildren();
      this.#typing = this.#newTyping();
    }
    const ended = !isRunning(turn);
    const whole = this.#typing.show(turn.text, ended);
    this.element.dataset.state = turn.state;
    this.element.dataset.empty = String(!turn.text && !turn.reasoning && !turn.toolCalls.length);
    this.#thinking.hidden = !turn.reasoning;
    if (this.#thought.textContent !== turn.reasoning) this.#thought.textContent = turn.reasoning;
    const calls = turn.toolCalls.map((call) => `${call.function?.name ?? ""}(${call.function?.arguments ?? ""})`);
    if (calls.join() !== [...this.#calls.children].map((call) => call.textContent).join()) {
      this.#calls.replaceChildren(...calls.map((call) => make("code", { class: "call" }, call)));
    }
    this.#facts.textContent = facts(turn);
    this.#copy.hidden = !ended || !turn.text;
    this.#again.hidden = !ended || !last || turn.state === "failed";
    this.#drawError(last);
    if (ended && !this.#spoken) {
      this.#spoken = true;
      whole.then(() => say(turn.state === "cancelled" ? "The answer was stopped." : "End of the answer."));
    }
  }

  #newTyping() {
    const news = isRunning(this.turn); // what has ended long ago is there to be read
    return new Typing(this.#text, (block) => news && sayBlock(block));
  }

  /** @param {boolean} last */
  #drawError(last) {
    const { error, state } = this.turn;
    const shown = state === "failed" && error;
    const told = shown ? JSON.stringify([error, last]) : "";
    if (this.#error.dataset.told === told) return;
    this.#error.dataset.told = told;
    this.#error.hidden = !shown;
    if (!shown) return;
    const status = error.status ? ` · ${error.status}` : "";
    const kind = error.retryable ? "primary" : "";
    this.#error.replaceChildren(
      make("p", { class: "error-code" }, `${error.code}${status}`),
      make("p", {}, error.message),
      ...(last ? [make("button", { type: "button", class: kind, click: this.#retry }, "Try again")] : []),
    );
    if (!this.#spoken) say(`It failed: ${error.message}`);
    this.#spoken = true;
  }
}

/** @param {Turn} turn */
function facts({ state, model, timing, usage, finishReason }) {
  const seconds = (/** @type {number} */ ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  return [
    model,
    state === "asked" && "waiting",
    state === "cancelled" && "stopped",
    state === "completed" && finishReason && finishReason !== "stop" && `ended by ${finishReason}`,
    timing && seconds(timing.total_ms),
    Number.isInteger(usage?.completion_tokens) && `${usage.completion_tokens} tokens`,
  ].filter(Boolean).join(" · ");
}
