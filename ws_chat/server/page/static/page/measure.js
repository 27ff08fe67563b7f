/** One stream's figures: when its first token came, how far apart its frames were, and what was merged. */

const MOST_FRAMES = 2000; // the figures are of the last so many

/** Times are milliseconds of `performance.now()`. */
export class Stream {
  /** @type {number | null} */ first = null;
  /** @type {number | null} */ end = null;
  /** The gap before each token frame but the first, and how many deltas it carries. @type {{ gap: number, deltas: number }[]} */
  frames = [];
  count = 0;
  deltas = 0;
  merged = 0;
  #seq = 0;
  #last = 0;

  /**
   * @param {import("./conversations.js").Conversation} conversation
   * @param {import("./conversations.js").Turn} turn
   */
  constructor(conversation, turn, now = performance.now()) {
    this.conversation = conversation;
    this.turn = turn;
    this.begun = now;
    this.resumed = turn.known;
  }

  /** @param {import("../ws-chat.js").Frame} frame */
  take(frame, now = performance.now()) {
    if (frame.type === "start") return;
    if (frame.type === "done") {
      this.end = now;
      return;
    }
    const deltas = frame.seq - this.#seq;
    this.frames.push({ gap: this.first === null ? 0 : now - this.#last, deltas });
    if (this.frames.length > MOST_FRAMES) this.frames.splice(0, MOST_FRAMES / 2);
    this.first ??= now;
    this.#seq = frame.seq;
    this.#last = now;
    this.count += 1;
    this.deltas += deltas;
    if (deltas > 1) this.merged += 1;
  }

  fail(now = performance.now()) {
    this.end = now;
  }

  /** Milliseconds to the first token, and the median, the 95th percentile and the largest of the gaps after it. */
  get figures() {
    const gaps = this.frames.slice(this.count > this.frames.length ? 0 : 1).map(({ gap }) => gap).sort((a, b) => a - b);
    const at = (/** @type {number} */ part) => gaps[Math.min(gaps.length - 1, Math.floor(gaps.length * part))] ?? null;
    return { ttft: this.first === null ? null : this.first - this.begun, median: at(0.5), p95: at(0.95), longest: at(1) };
  }
}
