/**
 * Talk to a ws_chat server from a browser. An answer arrives whole, once, whatever the network does.
 *
 *     const chat = connect("https://example.org");
 *     for await (const text of chat.ask("Why is the sky blue?").texts()) output.append(text);
 *
 * Every request is named with a UUID, so nothing is lost or paid for twice when the socket breaks: what was never
 * acknowledged is sent again, and what was is resumed after its last seq, by its epoch: the server may have given the id
 * to another answer meanwhile. The protocol is docs/protocol.md.
 *
 * @typedef {{ role: string, content?: unknown, [field: string]: unknown }} Message
 * @typedef {{ prompt_tokens: number, completion_tokens: number, total_tokens: number, [field: string]: unknown }} Usage
 * @typedef {{ name?: string | null, arguments?: string | null }} FunctionCall
 * @typedef {{ index?: number, id?: string | null, type?: string | null, function?: FunctionCall | null }} ToolCall
 * @typedef {{ type?: string, code: string, message: string, param?: string | null, status?: number,
 *   retryable?: boolean }} ErrorInfo
 * @typedef {{ type: "start", id: string, seq: number, model: string, epoch?: string }} StartFrame
 * @typedef {{ type: "token", id: string, seq: number, content?: string, refusal?: string, reasoning_content?: string,
 *   tool_calls?: ToolCall[], [field: string]: unknown }} TokenFrame
 * @typedef {{ type: "done", id: string, seq: number, status: "completed" | "cancelled", finish_reason: string | null,
 *   model: string | null, usage: Usage | null, timing?: { ttft_ms: number | null, total_ms: number } }} DoneFrame
 * @typedef {{ type: "error", id?: string, seq?: number, error: ErrorInfo }} ErrorFrame
 * @typedef {StartFrame | TokenFrame | DoneFrame} Frame What a reply yields; an error is thrown.
 * @typedef {{ type: "goaway", deadline_ms?: number, move?: boolean }} GoAwayFrame
 * @typedef {Frame | ErrorFrame | { type: "pong" } | GoAwayFrame} ServerFrame
 * @typedef {{ apiKey?: string, patience?: number, silence?: number }} ConnectOptions
 * @typedef {{ model?: string, previousId?: string, id?: string, signal?: AbortSignal,
 *   [parameter: string]: unknown }} AskOptions
 * @typedef {{ opened: () => void, received: (connection: Connection, text: string) => void,
 *   sent: (text: string) => void, lost: (connection: Connection, code: number, reason: string) => void }} Hooks
 */

const ID = /^[A-Za-z0-9._:-]{1,128}$/;
const UNREACHABLE = "it could not be reached, or refused the connection (a browser is not told which)";

// Seconds. The pause before another attempt to connect is random, up to a limit that doubles: "full jitter".
const FIRST_PAUSE = 0.2;
const LONGEST_PAUSE = 10;
const HANDSHAKE_LIMIT = 10;
const DOUBT_LIMIT = 2; // for the answer to a ping, when the browser says that it is offline

// Close codes (RFC 6455, 7.4.1)
const NORMAL = 1000;
const PROTOCOL_ERROR = 1002;
const ABNORMAL = 1006;
const POLICY_VIOLATION = 1008;
const TOO_BIG = 1009;

/** An error that the server told, as in the table of docs/protocol.md. */
export class ChatError extends Error {
  name = "ChatError";

  /** @param {ErrorInfo} error */
  constructor(error) {
    super(error.message);
    this.code = error.code;
    this.type = error.type ?? "server_error";
    this.status = error.status ?? 500;
    this.retryable = error.retryable ?? false;
    this.param = error.param ?? null;
  }
}

/** What would have to be resumed is not kept any more, or never was: the answer cannot be made whole. */
export class HistoryGoneError extends ChatError {
  name = "HistoryGoneError";
}

/** The id names another answer now, of which nothing was taken: the one that it named is not kept any more. */
export class GenerationGoneError extends HistoryGoneError {
  name = "GenerationGoneError";
}

/** The server could not be reached in time, refused the connection, or the chat was closed. */
export class ConnectionLostError extends Error {
  name = "ConnectionLostError";
}

/**
 * Return a connection to the server at `url` (http, https, ws, wss, or relative to the page), with a mount prefix if any.
 *
 * A reply fails when for `patience` seconds there was no contact with the server. After `silence` seconds without a
 * frame, while something runs, the connection is checked with a ping.
 *
 * @param {string | URL} [url]
 * @param {ConnectOptions} [options]
 */
export function connect(url = "/", options) {
  return new Chat(url, options);
}

/**
 * Answers from one server. It connects again only while something runs, or when something is asked.
 *
 * Events, each a CustomEvent: `state` (detail: the state), `sent` and `received` (detail: the text of a frame).
 */
export class Chat extends EventTarget {
  /** @type {"connecting" | "open" | "closed"} */ state = "closed";
  /** @type {Set<Connection>} */ #connections = new Set();
  /** The one to ask on; others finish what they carry. @type {Connection | null} */ #current = null;
  /** @type {Map<string, Reply>} */ #running = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  #attempts = 0;
  #closed = false;
  #url;
  #protocols;
  #patience;
  #silence;

  /** @param {string | URL} url @param {ConnectOptions} [options] */
  constructor(url, { apiKey, patience = 60, silence = 20 } = {}) {
    super();
    this.#url = socketUrl(url);
    // A browser fails a connection for which it offered subprotocols and the server chose none. A server that asks for
    // keys chooses; one that does not may know nothing of subprotocols, so without a key none is offered.
    this.#protocols = apiKey ? ["ws_chat.v1", `bearer.${base64url(apiKey)}`] : [];
    this.#patience = patience;
    this.#silence = silence;
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.addEventListener?.("offline", this.#doubt);
    globalThis.document?.addEventListener("visibilitychange", this.#wake);
    this.#connect();
  }

  /**
   * Start an answer and return it at once. `messages` may be one user message as a string. `previousId` continues from
   * an answer with the new messages only; one that still runs is interrupted. Other options are fields of the
   * chat-completions request.
   *
   * @param {string | Message[]} messages
   * @param {AskOptions} [options]
   */
  ask(messages, { model, previousId, id = uuid(), signal, ...parameters } = {}) {
    const list = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
    // As text, now: the list may be changed later, and what is sent again must be the same.
    const request = JSON.stringify({ ...parameters, type: "chat", id, model, previous_id: previousId, messages: list });
    return this.#start(new Reply(id, this.#patience, request), signal);
  }

  /**
   * Follow an answer that was asked for elsewhere (before the page was refreshed, in another tab) from after a seq.
   * `epoch` is the one that its reply had: without it, `after` may lead into another answer, which has its id now.
   *
   * @param {string} id
   * @param {{ after?: number, epoch?: string, signal?: AbortSignal }} [options]
   */
  resume(id, { after = 0, epoch, signal } = {}) {
    return this.#start(new Reply(id, this.#patience, null, after, epoch), signal);
  }

  /** Connect, if there is no connection. Without this it connects when something is asked. */
  open() {
    if (!this.#closed && !this.#connections.size) this.#connect();
  }

  /** Close. The server goes on with answers that have not ended for its resume window. */
  close() {
    this.#closed = true;
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("offline", this.#doubt);
    globalThis.document?.removeEventListener("visibilitychange", this.#wake);
    const error = new ConnectionLostError("The chat was closed before the answer had ended.");
    for (const reply of this.#running.values()) reply.fail(error);
    for (const connection of this.#connections) connection.end(NORMAL);
    this.#stopWaiting();
    this.#tellState();
  }

  /** @param {Reply} reply @param {AbortSignal} [signal] */
  #start(reply, signal) {
    if (this.#closed) throw new Error("This chat is closed.");
    if (!ID.test(reply.id)) throw new TypeError("An id is 1 to 128 characters of A-Z a-z 0-9 . _ : -");
    if (this.#running.has(reply.id)) throw new Error(`This chat follows ${reply.id} already.`);
    const cancel = () => reply.cancel();
    reply.over = () => {
      this.#running.delete(reply.id);
      signal?.removeEventListener("abort", cancel);
      reply.connection?.drop(reply);
    };
    this.#running.set(reply.id, reply);
    reply.wait(UNREACHABLE);
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted) cancel();
    if (reply.ended) return reply;
    if (this.#current?.open) this.#current.carry(reply);
    else if (this.#retry === undefined) this.#connect();
    return reply;
  }

  #connect() {
    this.#stopWaiting();
    if (this.#current) return;
    this.#current = new Connection(this.#url, this.#protocols, this.#silence, {
      opened: () => this.#attach(),
      received: (connection, text) => this.#receive(connection, text),
      sent: (text) => this.#tell("sent", text),
      lost: (connection, code, reason) => this.#lose(connection, code, reason),
    });
    this.#connections.add(this.#current);
    this.#tellState();
  }

  /** Hand what no connection carries to the current one, or see to it that there will be one. */
  #attach() {
    const moving = [...this.#connections].filter((connection) => connection.moving);
    if (this.#current?.open) {
      for (const connection of moving) for (const reply of connection.carried()) connection.drop(reply);
    }
    const waiting = [...this.#running.values()].filter((reply) => !reply.connection);
    if (this.#current?.open) {
      for (const reply of waiting) this.#current.carry(reply);
    } else if ((waiting.length || moving.length) && !this.#current && this.#retry === undefined) {
      const pause = Math.random() * Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.#attempts++);
      this.#retry = setTimeout(() => this.#tryAgain(), pause * 1000);
    }
    this.#tellState();
  }

  #tryAgain() {
    this.#stopWaiting();
    if (this.#running.size) this.#connect();
    this.#tellState();
  }

  #stopWaiting() {
    clearTimeout(this.#retry);
    this.#retry = undefined;
  }

  /** The network is back, or the page is looked at again: what was to be tried later is tried now. */
  #wake = () => {
    if (globalThis.document?.hidden) return;
    if (this.#retry !== undefined) this.#tryAgain();
    for (const connection of this.#connections) connection.check();
  };

  /** The network may be gone. A server on this machine still answers. */
  #doubt = () => {
    for (const connection of this.#connections) connection.check(DOUBT_LIMIT);
  };

  /** @param {Connection} connection @param {string} text */
  #receive(connection, text) {
    this.#tell("received", text);
    const frame = parse(text);
    if (!frame) connection.end(PROTOCOL_ERROR, "it sent what is no frame");
    else if (frame.type === "goaway") this.#leave(connection, frame.move);
    else if (frame.type === "pong") connection.alive();
    else {
      const reply = connection.find(frame.id);
      if (reply) this.#deliver(connection, reply, frame);
    }
  }

  /** @param {Connection} connection @param {Reply} reply @param {Frame | ErrorFrame} frame */
  #deliver(connection, reply, frame) {
    const refused = frame.type === "error" && frame.seq === undefined && frame.error;
    if (refused && refused.code === "draining") {
      connection.drop(reply); // another server, or the next one, takes it
      reply.wait("it is about to stop");
      this.#leave(connection);
      this.#attach();
    } else if (refused && refused.code === "generation_gone" && reply.restart()) {
      this.#askSoon(connection, reply, refused.message);
    } else if (refused && refused.retryable && refused.code !== "generation_lost" && reply.acknowledged) {
      this.#askSoon(connection, reply, refused.message); // what is there already cannot be reached for a moment
    } else {
      connection.answered(reply);
      // Only for what is new: a server that accepts and then breaks off is not to be asked again and again at once.
      if (reply.take(frame)) this.#attempts = 0;
    }
  }

  /** @param {Connection} connection @param {Reply} reply @param {string} why */
  #askSoon(connection, reply, why) {
    connection.drop(reply);
    reply.wait(why);
    setTimeout(() => this.#attach(), (0.5 + Math.random()) * FIRST_PAUSE * 1000);
  }

  /**
   * Ask on another connection from now on. With `move`, what runs is resumed there too, once it is open: until then it goes
   * on here, as there may be no other server.
   *
   * @param {Connection} connection @param {boolean} [move]
   */
  #leave(connection, move) {
    if (this.#current === connection) this.#current = null;
    connection.leave(move);
    if (!connection.moving) return;
    this.#connect();
    this.#attach();
  }

  /** @param {Connection} connection @param {number} code @param {string} reason */
  #lose(connection, code, reason) {
    this.#connections.delete(connection);
    if (this.#current === connection) this.#current = null;
    const closed = `the connection was closed with code ${code}${reason && `: ${reason}`}`;
    const why = connection.open ? closed : UNREACHABLE;
    if (code === TOO_BIG) connection.largest()?.fail(new ChatError(TOO_LARGE));
    for (const reply of connection.carried()) {
      connection.drop(reply);
      if (code === POLICY_VIOLATION) reply.fail(new ConnectionLostError(`The server refused: ${why}.`));
    }
    for (const reply of this.#running.values()) if (!reply.connection) reply.wait(why);
    this.#attach();
  }

  #tellState() {
    const open = [...this.#connections].some((connection) => connection.open);
    const connecting = this.#connections.size > 0 || this.#retry !== undefined;
    const state = open ? "open" : connecting ? "connecting" : "closed";
    if (state === this.state) return;
    this.state = state;
    this.#tell("state", state);
  }

  /** @param {string} type @param {string} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * An answer. Iterate it for its frames (`start`, each `token`, `done`), iterate `texts()` for its text, or await `end`,
 * the done frame; all three throw ChatError or ConnectionLostError when it failed. An iteration goes on where the one
 * before was left. What has come so far is always in `text`, `toolCalls` and `seq`; `seq` and `epoch` are the position to
 * resume after. A second `start` means that the server has forgotten the first, of which nothing had come.
 */
export class Reply {
  text = "";
  /** @type {ToolCall[]} */ toolCalls = [];
  /** @type {"completed" | "cancelled" | null} */ status = null;
  /** @type {string | null} */ finishReason = null;
  /** @type {string | null} */ model = null;
  /** @type {Usage | null} */ usage = null;
  /** What carries it now. @type {Connection | null} */ connection = null;
  /** Called at the end. */ over = () => {};
  /** @type {Frame[]} */ #frames = [];
  /** @type {(() => void)[]} */ #readers = [];
  /** @type {DoneFrame | null} */ #done = null;
  /** @type {Error | null} */ #error = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #waitingSince = 0;
  #cancelling = false;
  #started = false;
  #acknowledged;
  #request;
  #sent;
  #patience;
  #left;
  #why = "";

  /**
   * @param {string} id @param {number} patience @param {string | null} request Null: it was asked for elsewhere.
   * @param {number} [after] @param {string} [epoch]
   */
  constructor(id, patience, request, after = 0, epoch) {
    this.id = id;
    this.seq = after;
    this.epoch = epoch;
    this.#request = request;
    this.#acknowledged = this.#sent = request === null;
    this.#patience = this.#left = patience;
    this.end = this.#whole();
    this.end.catch(() => {}); // who reads it in another way is told there
  }

  /** Whether nothing more will come. */
  get ended() {
    return Boolean(this.#done || this.#error);
  }

  /** @returns {AsyncGenerator<Frame, void, undefined>} */
  async *[Symbol.asyncIterator]() {
    for (;;) {
      const frame = this.#frames.shift();
      if (frame) yield frame;
      else if (this.#error) throw this.#error;
      else if (this.#done) return;
      else await this.#change();
    }
  }

  /** @returns {AsyncGenerator<string, void, undefined>} */
  async *texts() {
    for await (const frame of this) {
      if (frame.type === "token" && frame.content && typeof frame.content === "string") yield frame.content;
    }
  }

  /** Stop the answer: it ends soon after with the status `cancelled`. One that has ended is left as it is. */
  cancel() {
    if (this.ended || this.#cancelling) return;
    this.#cancelling = true;
    if (!this.#sent) this.take({ ...CANCELLED, id: this.id, seq: this.seq + 1 });
    else this.connection?.send(this.#cancellation);
  }

  // The chat and its connections call these.

  /** Return what asks for what has not come yet. Sent twice, it is paid for once: the id is the same. */
  opening() {
    this.#sent = true;
    const resume = JSON.stringify({ type: "resume", id: this.id, after: this.seq, epoch: this.epoch });
    const opening = this.#acknowledged ? resume : (this.#request ?? resume);
    return this.#cancelling ? [opening, this.#cancellation] : [opening];
  }

  /**
   * Start again, because the id names another answer now; return false where anything has come: the texts of two answers
   * are never joined. One that was cancelled ends: the other answer is not its own.
   */
  restart() {
    if (this.seq) return false;
    this.epoch = undefined;
    this.#acknowledged = this.#request === null;
    this.#started = false;
    this.#frames = [];
    if (this.#cancelling) this.take({ ...CANCELLED, id: this.id, seq: 1 });
    return true;
  }

  /** Whether the server has taken the request. */
  get acknowledged() {
    return this.#acknowledged;
  }

  /** The size of the request, until the server has taken it. */
  get unacknowledgedSize() {
    return this.#acknowledged ? 0 : (this.#request ?? "").length;
  }

  /** Take note that there is no contact. @param {string} why */
  wait(why) {
    this.#why = why;
    if (this.ended || this.#timer !== undefined) return;
    this.#waitingSince = performance.now();
    this.#timer = setTimeout(() => this.#giveUp(), this.#left * 1000);
  }

  /** Take note of contact. Only what brings it on, or proves that the connection lasts, restores patience. */
  contact(restores = false) {
    if (this.#timer !== undefined) this.#left -= (performance.now() - this.#waitingSince) / 1000;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (restores) this.#left = this.#patience;
  }

  /** Take a frame; return whether it was new. What has come before is passed over. @param {Frame | ErrorFrame} frame */
  take(frame) {
    if (frame.type === "error") {
      const { code } = frame.error;
      const unknown = this.#acknowledged && code === "not_found" ? HistoryGoneError : ChatError;
      this.fail(new (code === "generation_gone" ? GenerationGoneError : unknown)(frame.error));
      return true;
    }
    this.#acknowledged = true;
    if (frame.type === "start") this.epoch = frame.epoch ?? this.epoch;
    if (frame.type === "start" ? this.#started : frame.type === "token" && frame.seq <= this.seq) return false;
    this.contact(true);
    this.#frames.push(frame);
    if (frame.type === "start") this.#started = true;
    else this.seq = frame.seq;
    if (frame.type === "token") {
      // These are as the upstream sent them, and may be of any type.
      if (typeof frame.content === "string") this.text += frame.content;
      if (Array.isArray(frame.tool_calls)) joinToolCalls(this.toolCalls, frame.tool_calls.filter(isObject));
    } else this.model = frame.model;
    if (frame.type === "done") this.#finish(frame);
    this.#tellReaders();
    return true;
  }

  /** @param {Error} error */
  fail(error) {
    if (this.ended) return;
    this.#error = error;
    this.contact();
    this.over();
    this.#tellReaders();
  }

  /** @param {DoneFrame} done */
  #finish(done) {
    this.#done = done;
    this.status = done.status;
    this.finishReason = done.finish_reason;
    this.usage = done.usage;
    this.over();
  }

  /** @returns {Promise<DoneFrame>} */
  async #whole() {
    for (;;) {
      if (this.#error) throw this.#error;
      if (this.#done) return this.#done;
      await this.#change();
    }
  }

  #giveUp() {
    this.fail(new ConnectionLostError(`No contact with the server for ${this.#patience} s: ${this.#why}.`));
  }

  get #cancellation() {
    return JSON.stringify({ type: "cancel", id: this.id });
  }

  /** @returns {Promise<void>} */
  #change() {
    return new Promise((resolve) => this.#readers.push(resolve));
  }

  #tellReaders() {
    for (const tell of this.#readers.splice(0)) tell();
  }
}

/** One socket, and the replies that it carries. Tells once that it is lost. */
class Connection {
  open = false;
  #leaving = false;
  #move = false;
  #ended = false;
  /** What it carries, and whether any of it was answered. @type {Map<Reply, boolean>} */ #replies = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #socket;
  #silence;
  #hooks;

  /** @param {string} url @param {string[]} protocols @param {number} silence @param {Hooks} hooks */
  constructor(url, protocols, silence, hooks) {
    this.#silence = silence;
    this.#hooks = hooks;
    this.#socket = new WebSocket(url, protocols);
    this.#socket.onopen = () => {
      this.open = true;
      this.#watch();
      hooks.opened();
    };
    this.#socket.onmessage = ({ data }) => {
      this.#watch();
      hooks.received(this, data);
    };
    this.#socket.onclose = ({ code, reason }) => this.end(code, reason);
    this.#socket.onerror = () => this.end(ABNORMAL); // not every implementation closes after a failed handshake
    this.#timer = setTimeout(() => this.end(ABNORMAL), HANDSHAKE_LIMIT * 1000);
  }

  /** Give it up at once: closing one that is dead would take long. @param {number} code */
  end(code, reason = "") {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = this.#socket.onerror = null;
    this.#socket.close();
    this.#hooks.lost(this, code, reason);
  }

  /** Close it as soon as it carries nothing. With `move`, what it carries can be resumed on another one. */
  leave(move = this.#move) {
    this.#leaving = true;
    this.#move = move;
    if (!this.#replies.size) this.end(NORMAL);
  }

  /** Whether it carries what can be resumed on another connection. */
  get moving() {
    return this.#move && !this.#ended && this.#replies.size > 0;
  }

  /** @param {string} text */
  send(text) {
    if (!this.open || this.#ended) return;
    this.#socket.send(text);
    this.#hooks.sent(text);
  }

  /** @param {Reply} reply */
  carry(reply) {
    reply.connection = this;
    this.#replies.set(reply, false);
    if (this.#replies.size === 1) this.#watch();
    for (const text of reply.opening()) this.send(text);
  }

  /** @param {Reply} reply */
  drop(reply) {
    reply.connection = null;
    this.#replies.delete(reply);
    if (this.#leaving) this.leave();
  }

  carried() {
    return [...this.#replies.keys()];
  }

  /** Return what a frame is for; a refusal without id is for the only one without an answer. @param {string} [id] */
  find(id) {
    if (id !== undefined) return this.carried().find((reply) => reply.id === id);
    const unanswered = this.carried().filter((reply) => !this.#replies.get(reply));
    return unanswered.length === 1 ? unanswered[0] : undefined;
  }

  /** @param {Reply} reply */
  answered(reply) {
    this.#replies.set(reply, true);
    reply.contact();
  }

  /** It has lasted for some time, and so has what it carries. */
  alive() {
    for (const [reply, answered] of this.#replies) if (answered) reply.contact(true);
  }

  /** Return what has the largest request that the server has not taken. */
  largest() {
    const untaken = this.carried().filter((reply) => reply.unacknowledgedSize);
    return untaken.sort((one, other) => other.unacknowledgedSize - one.unacknowledgedSize)[0];
  }

  /** Something was heard: check it after some silence. */
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#replies.size && this.check(), this.#silence * 1000);
  }

  /** Find out whether it is dead: it has so many seconds to answer. */
  check(limit = this.#silence / 2) {
    if (!this.open) return;
    const unsent = this.#socket.bufferedAmount;
    this.send('{"type":"ping"}');
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      // A large request on a slow line holds the ping up; as long as it moves, the connection is not dead.
      if (this.#socket.bufferedAmount < unsent) this.check(limit);
      else this.end(ABNORMAL, "nothing was heard for too long");
    }, limit * 1000);
  }
}

/** @type {ErrorInfo} */
const TOO_LARGE = {
  type: "invalid_request_error",
  code: "too_large",
  message: "The request is larger than the server takes.",
  status: 413,
};

/** @type {Omit<DoneFrame, "id" | "seq">} */
const CANCELLED = { type: "done", status: "cancelled", finish_reason: null, model: null, usage: null };

/** Join pieces to what has come, by their `index` (the OpenAI streaming reference).
 * @param {ToolCall[]} calls @param {ToolCall[]} pieces */
function joinToolCalls(calls, pieces) {
  for (const { function: any, ...piece } of pieces) {
    const given = isObject(any) ? any : undefined;
    const call = calls.filter((known) => piece.index !== undefined && known.index === piece.index).at(-1);
    if (!call || (piece.id && call.id && piece.id !== call.id)) {
      calls.push({ ...piece, function: { ...given } });
      continue;
    }
    const joined = (call.function?.arguments ?? "") + (given?.arguments ?? "");
    // Servers repeat what is given once, or send it empty.
    Object.assign(call, filled(piece), { function: { ...call.function, ...filled(given ?? {}), arguments: joined } });
  }
}

/** @param {unknown} value @returns {value is Record<string, any>} */
function isObject(value) {
  return typeof value === "object" && value !== null;
}

/** @param {object} fields */
function filled(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== ""));
}

/** @param {string} text @returns {ServerFrame | null} */
function parse(text) {
  try {
    const frame = JSON.parse(text);
    return typeof frame?.type === "string" ? frame : null;
  } catch {
    return null;
  }
}

/** @param {string | URL} url */
function socketUrl(url) {
  const found = new URL(url, globalThis.location?.href);
  found.protocol = found.protocol.replace("http", "ws");
  const path = found.pathname.replace(/\/+$/, "");
  if (!path.endsWith("/ws")) found.pathname = `${path.replace(/\/v1$/, "")}/v1/chat/ws`;
  found.hash = "";
  return found.href;
}

/** Return a random UUID. */
export function uuid() {
  // Only https pages and localhost have randomUUID; http on a local network is an everyday case.
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** @param {string} text */
function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
