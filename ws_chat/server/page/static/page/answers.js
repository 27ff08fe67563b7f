/**
 * Questions and answers: asks, follows, stops, and writes what comes into the turns. Knows nothing of the page.
 *
 * @typedef {import("./conversations.js").Conversation} Conversation
 * @typedef {import("./conversations.js").Turn} Turn
 */
import { ChatError, HistoryGoneError, uuid } from "../ws-chat.js";
import { answer, isRunning, path } from "./conversations.js";
import * as images from "./images.js";
import { Stream } from "./measure.js";

const GO_ON = "Continue exactly where you stopped. Do not repeat anything.";

/** Event: `stream` (detail: a Stream that has begun). */
export class Answers extends EventTarget {
  /** Those that run. @type {Map<Turn, import("../ws-chat.js").Reply>} */ #replies = new Map();
  /** Those that begin as soon as their images are there. @type {Set<Turn>} */ #beginning = new Set();
  #conversations;
  #line;

  /** @param {import("./conversations.js").Conversations} conversations @param {import("./line.js").Line} line */
  constructor(conversations, line) {
    super();
    this.#conversations = conversations;
    this.#line = line;
    conversations.follows = (turn) => this.#replies.has(turn) || this.#beginning.has(turn);
    conversations.addEventListener("elsewhere", () => this.followAll());
  }

  /**
   * Ask, below the turn `parent`. What still runs there is interrupted: its answer is what it has said so far.
   *
   * @param {Conversation} conversation
   * @param {string} question
   * @param {{ parent?: string | null, images?: string[] }} [options]
   */
  ask(conversation, question, { parent = conversation.leaf, images: shown = [] } = {}) {
    const before = conversation.turns.find(({ id }) => id === parent);
    const asked = conversation.model || undefined;
    const { system, temperature } = conversation;
    // Without a model the server would go on with the one before; the messages in full ask for the default.
    const continues = before?.known && (asked || !before.asked) && (before.system ?? "") === system;
    const previousId = continues ? before?.id : undefined;
    const given = { id: uuid(), parent, question, images: shown, previousId, asked, system, temperature };
    void this.#run(conversation, this.#conversations.add(conversation, given));
  }

  /** Ask the same again: another version beside this turn, or in place of one without an answer. @param {Conversation} conversation @param {Turn} turn */
  again(conversation, turn) {
    const useless = turn.state === "failed" && !answer(turn);
    if (useless && !conversation.turns.some(({ parent }) => parent === turn.id)) this.#conversations.drop(conversation, turn);
    this.ask(conversation, turn.question, { parent: turn.parent, images: turn.images });
  }

  /** Go on with an answer that ended at the length limit. @param {Conversation} conversation @param {Turn} turn */
  goOn(conversation, turn) {
    const previousId = turn.known ? turn.id : undefined;
    this.#conversations.rename(conversation, turn, uuid());
    const given = { before: answer(turn), text: "", state: "asked", known: false, epoch: undefined, previousId };
    Object.assign(turn, given, { finishReason: undefined, usage: undefined, timing: undefined });
    this.#conversations.changed(conversation, turn);
    this.#conversations.save(conversation);
    void this.#run(conversation, turn);
  }

  /** @param {Turn} turn */
  stop(turn) {
    this.#replies.get(turn)?.cancel();
  }

  /** Go on with everything that runs: after a refresh, or because another tab has asked. */
  followAll({ asksAgain = false } = {}) {
    for (const conversation of this.#conversations.list) {
      for (const turn of conversation.turns.filter(isRunning)) {
        // What the server has not taken yet is another tab's to send; after a refresh it is ours.
        if (!this.#conversations.follows(turn) && (turn.known || asksAgain)) void this.#run(conversation, turn);
      }
    }
  }

  /** Follow what runs over a new connection. The old one's replies end unheard. */
  move() {
    this.#replies.clear();
    this.followAll({ asksAgain: true });
  }

  /** @param {Conversation} conversation @param {Turn} turn */
  async #run(conversation, turn) {
    this.#beginning.add(turn);
    if (!turn.known) await images.load(path(conversation, turn.id).flatMap(({ images: shown }) => shown));
    this.#beginning.delete(turn);
    const { chat } = this.#line;
    // The same request with the same id is paid for once, so asking again is safe when the server may know it or not.
    const reply = turn.known ? chat.resume(turn.id, { epoch: turn.epoch }) : chat.ask(...request(conversation, turn));
    const stream = new Stream(conversation, turn);
    this.#replies.set(turn, reply);
    this.dispatchEvent(new CustomEvent("stream", { detail: stream }));
    const ours = () => this.#replies.get(turn) === reply;
    let first = true;
    try {
      for await (const frame of reply) {
        if (!ours()) return;
        stream.take(frame);
        const another = frame.type === "start" && frame.epoch !== turn.epoch;
        if (another || (frame.type !== "start" && first)) {
          // What was kept is told again from the start.
          Object.assign(turn, { text: "", toolCalls: [], ...(turn.before ? {} : { reasoning: "" }) });
          first = frame.type === "start";
        }
        this.#write(conversation, turn, frame, reply);
      }
    } catch (error) {
      if (ours()) this.#fail(conversation, turn, error, stream);
    } finally {
      if (ours()) this.#replies.delete(turn);
    }
  }

  /** @param {Conversation} conversation @param {Turn} turn @param {import("../ws-chat.js").Frame} frame */
  #write(conversation, turn, frame, /** @type {import("../ws-chat.js").Reply} */ reply) {
    if (frame.type === "start") {
      Object.assign(turn, { state: "running", known: true, epoch: frame.epoch, model: frame.model, error: undefined });
    } else if (frame.type === "token") {
      turn.text += text(frame.content) + text(frame.refusal);
      turn.reasoning += text(frame.reasoning_content) || text(frame.reasoning);
      if (frame.tool_calls) turn.toolCalls = reply.toolCalls;
    } else {
      const { status: state, finish_reason: finishReason, usage, timing } = frame;
      Object.assign(turn, { state, finishReason, usage, timing, model: frame.model ?? turn.model });
    }
    this.#conversations.changed(conversation, turn);
    if (frame.type !== "token") this.#conversations.save(conversation);
  }

  /** @param {Conversation} conversation @param {Turn} turn @param {unknown} error @param {Stream} stream */
  #fail(conversation, turn, error, stream) {
    const unknown = error instanceof ChatError && error.code === "not_found";
    if (unknown && turn.previousId && !turn.known) {
      // The server does not keep what came before any more; we do.
      this.#replies.delete(turn);
      this.#conversations.rename(conversation, turn, uuid());
      turn.previousId = undefined;
      this.#conversations.changed(conversation, turn);
      void this.#run(conversation, turn);
      return;
    }
    const failure = this.#line.refusal ?? told(error);
    stream.fail();
    Object.assign(turn, { state: "failed", error: failure });
    this.#conversations.changed(conversation, turn);
    this.#conversations.save(conversation);
  }
}

/** @param {Conversation} conversation @param {Turn} turn @returns {[any[], import("../ws-chat.js").AskOptions]} */
function request(conversation, turn) {
  const whole = !turn.previousId;
  const messages = whole && turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const known of whole ? path(conversation, turn.parent) : []) messages.push(...said(known, answer(known)));
  if (!turn.before) messages.push(...said(turn, ""));
  else messages.push(...(whole ? said(turn, turn.before) : []), { role: "user", content: GO_ON });
  const { id, asked: model, previousId, temperature } = turn;
  return [messages, { id, model, previousId, ...(temperature === undefined ? {} : { temperature }) }];
}

/** Return a question, and its answer if there is one. @param {Turn} turn @param {string} given @returns {any[]} */
function said(turn, given) {
  const parts = turn.images.flatMap((id) => {
    const url = images.known(id);
    return url ? [{ type: "image_url", image_url: { url } }] : [];
  });
  const content = parts.length ? [...(turn.question ? [{ type: "text", text: turn.question }] : []), ...parts] : turn.question;
  return [{ role: "user", content }, ...(given ? [{ role: "assistant", content: given }] : [])];
}

/** Return a field that is a text; what else an upstream sends there is passed over. @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value : "";
}

/** @param {unknown} error @returns {import("./conversations.js").Failure} */
function told(error) {
  if (error instanceof HistoryGoneError) {
    return { code: error.code, message: "The server does not keep this answer any more.", retryable: true };
  }
  if (error instanceof ChatError) {
    const { code, message, status, retryable, param } = error;
    return { code, message, status, retryable, param };
  }
  return { code: "connection_lost", message: error instanceof Error ? error.message : String(error), retryable: true };
}
