/** The live panel: each stream's time to its first token, the gaps between its frames, and which of them were merged. */
import { isRunning } from "./conversations.js";
import { get, make, paced } from "./dom.js";

const MOST_STREAMS = 12;
const MOST_BARS = 120;
const HEIGHT = 56; // pixels, as page.css has it

export class Streams {
  /** @type {StreamView[]} */ #views = [];
  #place = get("streams");
  #streams = make("div");
  #empty = make("p", { class: "empty" }, "Ask something: what its stream does is drawn here.");
  #draw = paced(() => this.#drawAll());

  /** @param {import("./conversations.js").Conversations} conversations @param {import("./answers.js").Answers} answers */
  constructor(conversations, answers) {
    const legend = [["first", "First token"], ["frame", "Frame, after a gap"], ["merged", "Merged frame"]];
    const names = legend.map(([kind, name]) => make("span", { class: kind }, name));
    this.#place.append(make("p", { class: "legend" }, ...names), this.#streams, this.#empty);
    answers.addEventListener("stream", (event) => {
      const view = new StreamView(/** @type {CustomEvent} */ (event).detail);
      this.#empty.remove();
      this.#streams.prepend(view.element);
      this.#views.unshift(view);
      for (const old of this.#views.splice(MOST_STREAMS)) old.element.remove();
      this.#draw();
    });
    conversations.addEventListener("turn", this.#draw);
    addEventListener("resize", () => this.show());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  /** Draw everything, because it has come into view or its size has changed. */
  show() {
    for (const view of this.#views) view.drawn = false;
    this.#draw();
  }

  #drawAll() {
    if (!this.#place.offsetWidth) return; // nobody sees it
    for (const view of this.#views) view.draw();
  }
}

class StreamView {
  drawn = false;
  #title = make("h2");
  #canvas = /** @type {HTMLCanvasElement} */ (make("canvas", { role: "img" }));
  #figures = make("dl");
  #stream;

  /** @param {import("./measure.js").Stream} stream */
  constructor(stream) {
    this.#stream = stream;
    this.element = make("article", { class: "stream" }, this.#title, this.#canvas, this.#figures);
  }

  draw() {
    if (this.drawn) return;
    const { conversation, turn, count, deltas, merged, resumed } = this.#stream;
    const { ttft, median, p95, longest } = this.#stream.figures;
    this.drawn = this.#stream.end !== null && !isRunning(turn);
    this.element.dataset.state = turn.state;
    this.#title.textContent = turn.question.trim().split("\n", 1)[0] || conversation.title;
    this.#title.title = turn.id;
    const rows = [
      [resumed ? "First token, after resuming" : "First token", told(ttft)],
      ["Gap: median, 95 %, longest", `${told(median)}, ${told(p95)}, ${told(longest)}`],
      ["Received", `${counted(deltas, "token")} in ${counted(count, "frame")}`],
      ["Merged frames", String(merged)],
    ];
    this.#figures.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    this.#canvas.setAttribute("aria-label", `Gaps between frames: ${rows[1][1]}. ${merged} merged frames of ${count}.`);
    this.#chart(ttft);
  }

  /** A bar for each frame: its height is the gap before it (by its square root, so that small ones are seen). */
  #chart(/** @type {number | null} */ ttft) {
    const style = getComputedStyle(this.element);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`);
    const scale = devicePixelRatio;
    const width = this.#canvas.clientWidth;
    Object.assign(this.#canvas, { width: width * scale, height: HEIGHT * scale });
    const pen = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    pen.scale(scale, scale);
    const frames = this.#stream.frames.slice(-MOST_BARS);
    const highest = Math.sqrt(Math.max(ttft ?? 0, 50, ...frames.map(({ gap }) => gap)));
    const step = width / (MOST_BARS + 4);
    const bar = (/** @type {number} */ x, /** @type {number} */ wide, /** @type {number} */ ms, /** @type {string} */ name) => {
      const high = Math.max(1.5, (Math.sqrt(ms) / highest) * (HEIGHT - 8));
      pen.fillStyle = colour(name);
      pen.fillRect(x, HEIGHT - high, wide, high);
    };
    if (ttft !== null) bar(0, step * 3, ttft, "soft");
    frames.forEach(({ gap, deltas }, place) => {
      const x = (place + 4) * step;
      bar(x, Math.max(1, step - 1), gap, deltas > 1 ? "warm" : "accent");
      if (deltas > 1) pen.fillRect(x - 1, 0, Math.max(3, step + 1), 3);
    });
  }
}

/** @param {number} count @param {string} what */
function counted(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

/** @param {number | null} ms */
function told(ms) {
  if (ms === null) return "–";
  return ms < 9.95 ? `${ms.toFixed(1)} ms` : ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
