/**
 * Questions and answers: asks, follows, stops, and writes what comes into the turns. Knows nothing of the page.
 *
 * @typedef {import("./conversations.js").Conversation} Conversation
 * @typedef {import("./conversations.js").Turn} Turn
 */
import { ChatError, HistoryGoneError, uuid } from "../ws-chat.js";
import { isRunning } from "./conversations.js";
import { Stream } from "./measure.js";

/** Event: `stream` (detail: a Stream that has begun). */
export class Answers extends EventTarget {
  /** Those that run. @type {Map<Turn, import("../ws-chat.js").Reply>} */ #replies = new Map();
  #conversations;
  #line;

  /** @param {import("./conversations.js").Conversations} conversations @param {import("./line.js").Line} line */
  constructor(conversations, line) {
    super();
    this.#conversations = conversations;
    this.#line = line;
    conversations.follows = (turn) => this.#replies.has(turn);
    conversations.addEventListener("elsewhere", () => this.followAll());
  }

  /** Ask. What still runs in this conversation is interrupted: its answer is what it has said so far. */
  ask(/** @type {Conversation} */ conversation, /** @type {string} */ question) {
    const before = conversation.turns.at(-1);
    const asked = conversation.model || undefined;
    // Without a model the server would go on with the one before; the messages in full ask for the default.
    const continues = before?.known && (asked || !before.asked);
    const previousId = continues ? before?.id : undefined;
    this.#run(conversation, this.#conversations.add(conversation, { id: uuid(), question, previousId, asked }));
  }

  /** Ask the same again, in place of this turn. @param {Conversation} conversation @param {Turn} turn */
  again(conversation, turn) {
    this.#conversations.cut(conversation, turn);
    this.ask(conversation, turn.question);
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
        if (!this.#replies.has(turn) && (turn.known || asksAgain)) this.#run(conversation, turn);
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
          Object.assign(turn, { text: "", reasoning: "", toolCalls: [] }); // what was kept is told again from the start
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
      Object.assign(turn, { id: uuid(), previousId: undefined });
      this.#run(conversation, turn);
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
  const before = turn.previousId ? [] : conversation.turns.slice(0, conversation.turns.indexOf(turn));
  const messages = before.flatMap((known) => [
    { role: "user", content: known.question },
    ...(known.text ? [{ role: "assistant", content: known.text }] : []),
  ]);
  messages.push({ role: "user", content: turn.question });
  return [messages, { id: turn.id, model: turn.asked, previousId: turn.previousId }];
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
