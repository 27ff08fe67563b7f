/** One turn as it is drawn: the question, and the answer that types. */
import { answer, isRunning } from "./conversations.js";
import { button, copy, make } from "./dom.js";
import { QuestionView } from "./question.js";
import { say, sayBlock } from "./spoken.js";
import { Typing } from "./typing.js";

/**
 * @typedef {import("./conversations.js").Turn} Turn
 * @typedef {{ again: () => void, edit: (question: string) => void, goOn: () => void, version: (step: number) => void }} Actions
 * @typedef {{ last: boolean, version: number, versions: number }} Place
 */

const REASONS = /** @type {Record<string, string>} */ ({
  length: "stopped at the length limit",
  content_filter: "stopped by a content filter",
  tool_calls: "calls tools, which this page does not have",
});

export class TurnView {
  #text = make("div", { class: "text" });
  #thought = make("div", { class: "thought", dir: "auto" });
  #summary = make("summary");
  #thinking = /** @type {HTMLDetailsElement} */ (make("details", { class: "thinking", hidden: true }, this.#summary, this.#thought));
  #calls = make("div", { class: "calls" });
  #error = make("div", { class: "error", hidden: true });
  #facts = make("span", { class: "facts" });
  #copy = button("copy", "Copy answer", () => copy(answer(this.turn), this.#copy));
  #again;
  #goOn;
  #versions;
  #epoch;
  #typing;
  #spoken;
  #question;
  #actions;
  /** When reasoning began to be seen here. @type {number | null} */ #thoughtSince = null;

  /** @param {Turn} turn @param {Actions} actions */
  constructor(turn, actions) {
    this.turn = turn;
    this.#actions = actions;
    this.#again = button("again", "Ask again", actions.again);
    this.#again.classList.add("again");
    this.#goOn = make("button", { type: "button", class: "go-on", hidden: true, click: actions.goOn }, "Continue");
    this.#versions = this.#makeVersions();
    this.#spoken = !isRunning(turn); // what has ended long ago is there to be read, not news
    this.#epoch = turn.epoch;
    this.#typing = this.#newTyping();
    this.#question = new QuestionView(turn, actions.edit);
    const title = turn.question.trim().split("\n", 1)[0].slice(0, 120) || "Image";
    this.element = make(
      "article",
      { class: "turn" },
      make("h2", { class: "unseen" }, title),
      this.#question.element,
      make("div", { class: "answer" }, this.#thinking, this.#text, this.#calls, this.#error, this.#goOn),
      make("footer", {}, this.#versions.element, this.#facts, this.#copy, this.#again),
    );
  }

  #makeVersions() {
    const step = (/** @type {number} */ by) => () => this.#actions.version(by);
    const count = make("span", {});
    const back = make("button", { type: "button", class: "quiet", "aria-label": "Previous version", click: step(-1) }, "‹");
    const forth = /** @type {HTMLButtonElement} */ (
      make("button", { type: "button", class: "quiet", "aria-label": "Next version", click: step(1) }, "›")
    );
    return { element: make("span", { class: "versions", hidden: true }, back, count, forth), count, back, forth };
  }

  /** Put the focus on the button that leads further. @param {number} step */
  focusVersion(step) {
    const { back, forth } = this.#versions;
    const wanted = /** @type {HTMLButtonElement} */ (step < 0 ? back : forth);
    requestAnimationFrame(() => (wanted.disabled ? (wanted === back ? forth : back) : wanted).focus());
  }

  /** Draw what has changed. @param {Turn} turn @param {Place} place */
  draw(turn, { last, version, versions }) {
    this.turn = turn;
    if (this.#epoch && this.#epoch !== turn.epoch) {
      // Another answer, which does not go on from what is shown. What still reads the one before gets no place here.
      const text = make("div", { class: "text" });
      this.#text.replaceWith(text);
      this.#text = text;
      this.#typing = this.#newTyping();
    }
    this.#epoch = turn.epoch;
    const ended = !isRunning(turn);
    const whole = this.#typing.show(answer(turn), ended);
    this.element.dataset.state = turn.state;
    this.element.dataset.empty = String(!answer(turn) && !turn.reasoning && !turn.toolCalls.length);
    this.#drawReasoning(ended);
    this.#drawCalls();
    this.#facts.textContent = facts(turn);
    this.#copy.hidden = !ended || !answer(turn);
    this.#again.hidden = !ended || (last && turn.state === "failed");
    this.#goOn.hidden = !(last && turn.state === "completed" && turn.finishReason === "length" && answer(turn));
    this.#question.edit.hidden = !ended;
    this.#versions.element.hidden = versions < 2;
    this.#versions.count.textContent = `${version}/${versions}`;
    /** @type {HTMLButtonElement} */ (this.#versions.back).disabled = version === 1;
    this.#versions.forth.disabled = version === versions;
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

  /** Reasoning is open while nothing else has come, and folded then, unless it was opened or closed by hand. */
  #drawReasoning(/** @type {boolean} */ ended) {
    const { turn } = this;
    this.#thinking.hidden = !turn.reasoning;
    if (!turn.reasoning) return;
    const live = !ended && !answer(turn) && !turn.toolCalls.length;
    if (live) this.#thoughtSince ??= performance.now();
    else if (this.#thoughtSince !== null) {
      turn.thought ??= performance.now() - this.#thoughtSince;
      this.#thoughtSince = null;
    }
    if (this.#thinking.dataset.live !== String(live)) {
      this.#thinking.open = live;
      this.#thinking.dataset.live = String(live);
    }
    const thought = turn.thought ? `Thought for ${duration(turn.thought)}` : "Reasoning";
    this.#summary.textContent = live ? "Thinking…" : thought;
    const shown = this.#thought.textContent ?? "";
    if (turn.reasoning.startsWith(shown)) this.#thought.append(turn.reasoning.slice(shown.length));
    else this.#thought.textContent = turn.reasoning;
    if (live) this.#thought.scrollTop = this.#thought.scrollHeight;
  }

  #drawCalls() {
    const calls = this.turn.toolCalls.map((call) => `${call.function?.name ?? ""}(${call.function?.arguments ?? ""})`);
    if (calls.join() === [...this.#calls.children].map((call) => call.textContent).join()) return;
    this.#calls.replaceChildren(...calls.map((call) => make("code", { class: "call" }, call)));
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
      ...(last ? [make("button", { type: "button", class: kind, click: this.#actions.again }, "Try again")] : []),
    );
    if (!this.#spoken) say(`It failed: ${error.message}`);
    this.#spoken = true;
  }
}

/** @param {Turn} turn */
function facts({ state, model, timing, usage, finishReason }) {
  const tokens = usage?.completion_tokens;
  return [
    model,
    state === "asked" && "waiting",
    state === "cancelled" && "stopped",
    state === "completed" && finishReason && finishReason !== "stop" && (REASONS[finishReason] ?? `ended: ${finishReason}`),
    timing && duration(timing.total_ms),
    Number.isInteger(tokens) && `${tokens} ${tokens === 1 ? "token" : "tokens"}`,
  ].filter(Boolean).join(" · ");
}

/** @param {number} ms */
function duration(ms) {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}
