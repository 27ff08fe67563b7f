/** The frame inspector: what was sent and received, and the same as a line for a terminal. */
import { curl, wscat } from "./commands.js";
import { copy, get, make, paced } from "./dom.js";

const MOST_FRAMES = 500;
const MOST_CHARACTERS = 2_000_000; // a replay can be one frame with a whole answer

export class Frames {
  /** @type {{ at: Date, sent: boolean, text: string }[]} */ #frames = [];
  #characters = 0;
  /** How many of the last are not drawn yet. */ #fresh = 0;
  #pause = /** @type {HTMLInputElement} */ (make("input", { type: "checkbox", change: () => this.show() }));
  #withKey = /** @type {HTMLInputElement} */ (make("input", { type: "checkbox" }));
  #rows = make("ol", { class: "frames" });
  #draw = paced(() => this.#drawFresh());
  #line;
  #needsKey;

  /** @param {import("./line.js").Line} line @param {boolean} needsKey */
  constructor(line, needsKey) {
    this.#line = line;
    this.#needsKey = needsKey;
    const check = (/** @type {Node} */ box, /** @type {string} */ text) => make("label", { class: "check" }, box, ` ${text}`);
    const clear = make("button", { type: "button", class: "quiet", click: () => this.#clear() }, "Clear");
    const tools = make("div", { class: "tools" }, check(this.#pause, "Pause"), check(this.#withKey, "Copy with the key"), clear);
    get("frames").append(tools, this.#rows);
    for (const type of ["sent", "received"]) {
      line.addEventListener(type, (event) => this.#take(type === "sent", /** @type {CustomEvent} */ (event).detail));
    }
  }

  /** Draw what has come while nobody was looking. */
  show() {
    this.#draw();
  }

  /** @param {boolean} sent @param {string} text */
  #take(sent, text) {
    this.#frames.push({ at: new Date(), sent, text });
    this.#characters += text.length;
    this.#fresh += 1;
    while (this.#frames.length > MOST_FRAMES || (this.#characters > MOST_CHARACTERS && this.#frames.length > 1)) {
      this.#characters -= this.#frames.shift()?.text.length ?? 0;
    }
    this.#draw();
  }

  #clear() {
    this.#frames = [];
    this.#characters = this.#fresh = 0;
    this.#rows.replaceChildren();
  }

  #drawFresh() {
    const panel = get("frames");
    if (!this.#fresh || this.#pause.checked || !panel.offsetWidth) return;
    const follows = panel.scrollHeight - panel.scrollTop - panel.clientHeight < 40;
    this.#rows.append(...this.#frames.slice(-this.#fresh).map((frame) => this.#row(frame)));
    this.#fresh = 0;
    while (this.#rows.childElementCount > this.#frames.length) this.#rows.firstElementChild?.remove();
    if (follows) panel.scrollTop = panel.scrollHeight;
  }

  /** @param {{ at: Date, sent: boolean, text: string }} frame */
  #row({ at, sent, text }) {
    const summary = make(
      "summary",
      { class: sent ? "sent" : "received" },
      make("span", { class: "way" }, sent ? "↑" : "↓", make("span", { class: "unseen" }, sent ? " sent" : " received")),
      make("time", {}, at.toLocaleTimeString("en-GB") + `.${String(at.getMilliseconds()).padStart(3, "0")}`),
      ...told(text).map((part, place) => make("span", { class: ["type", "seq", "brief"][place] }, part)),
    );
    const details = make("details", { toggle: () => this.#open(details, sent, text) }, summary);
    return make("li", {}, details);
  }

  /** @param {HTMLElement} details @param {boolean} sent @param {string} text */
  #open(details, sent, text) {
    if (details.querySelector("pre")) return;
    const button = (/** @type {string} */ label, /** @type {() => string} */ line) => {
      const made = make("button", { type: "button", class: "quiet", click: () => copy(line(), made) }, label);
      return made;
    };
    const buttons = [button("Copy", () => text)];
    if (sent) {
      buttons.push(button("Copy as wscat", () => wscat(text, this.#place)));
      if (curl(text, this.#place)) buttons.push(button("Copy as curl", () => curl(text, this.#place) ?? ""));
    }
    const pre = make("pre", { tabindex: "0", role: "group", "aria-label": "Frame" }, pretty(text));
    details.append(make("div", { class: "tools" }, ...buttons), pre);
  }

  get #place() {
    const { socketUrl, streamUrl, key } = this.#line;
    const given = this.#withKey.checked ? key : "";
    return { socketUrl, streamUrl, needsKey: this.#needsKey || Boolean(key), key: given };
  }
}

/** Return a frame's type, its seq, and what it is about. @param {string} text @returns {string[]} */
function told(text) {
  const frame = parsed(text);
  if (!frame) return ["?", "", text.slice(0, 200)];
  const { content, reasoning_content: reasoning, refusal, tool_calls: calls, error, messages, status, model, after } = frame;
  const said = content ?? reasoning ?? refusal ?? (calls && JSON.stringify(calls)) ?? messages?.at(-1)?.content;
  const brief = said !== undefined ? JSON.stringify(said) : (error?.code ?? status ?? model ?? (after !== undefined ? `after ${after}` : ""));
  return [String(frame.type), String(frame.seq ?? ""), String(brief).slice(0, 200)];
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // what the server sends is shown as it is, above all when it is wrong
  }
}

/** @param {string} text */
function pretty(text) {
  const frame = parsed(text);
  return frame ? JSON.stringify(frame, null, 2) : text;
}
