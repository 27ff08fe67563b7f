/**
 * The connection, and the key for it. A browser is not told why a WebSocket was refused, so when one is, this asks over
 * HTTP, where the server says it.
 *
 * @typedef {import("./conversations.js").Failure} Failure
 */
import { connect } from "../ws-chat.js";
import { OURS, local, session } from "./storage.js";

const KEY = `${OURS}key`;
const PATIENCE = 300; // seconds: as long as a server keeps an answer by default
const PAUSE = 2000; // milliseconds without a connection, until the reason is asked for

/** Events: `state`, `refused`, `moved` (there is a new connection), `sent` and `received` (detail: a frame's text). */
export class Line extends EventTarget {
  /** Why the server lets nobody in, until another key is tried. @type {Failure | null} */ refusal = null;
  /** Why there is no contact just now. */ trouble = "";
  /** @type {"connecting" | "open" | "closed"} */ state = "closed";
  /** @type {import("../ws-chat.js").Chat | null} */ #chat = null;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #asking;

  /** Where the server is. */
  base = new URL(".", document.baseURI);

  get socketUrl() {
    return new URL("v1/chat/ws", this.base).href.replace(/^http/, "ws");
  }

  get streamUrl() {
    return new URL("v1/chat/stream", this.base).href;
  }

  get key() {
    return session.getItem(KEY) ?? local.getItem(KEY) ?? "";
  }

  get keeps() {
    return local.getItem(KEY) !== null;
  }

  /** What to ask on. */
  get chat() {
    if (this.#chat) return this.#chat;
    this.refusal = null;
    const chat = connect(this.socketUrl, { apiKey: this.key || undefined, patience: PATIENCE });
    for (const type of ["sent", "received"]) {
      chat.addEventListener(type, (event) => this.#tell(type, /** @type {CustomEvent} */ (event).detail));
    }
    chat.addEventListener("state", () => chat === this.#chat && this.#changed(chat.state));
    this.#chat = chat;
    this.#changed(chat.state);
    return chat;
  }

  /** Use another key, and connect again with it. @param {string} key @param {boolean} keeps */
  use(key, keeps) {
    session.removeItem(KEY);
    local.removeItem(KEY);
    if (key) (keeps ? local : session).setItem(KEY, key);
    const old = this.#chat;
    this.#chat = null;
    this.refusal = null;
    this.#tell("moved");
    old?.close();
  }

  /** @param {"connecting" | "open" | "closed"} state */
  #changed(state) {
    this.state = state;
    if (state === "open") this.trouble = "";
    clearInterval(this.#asking);
    if (state === "connecting") this.#asking = setInterval(() => this.#askWhy(), PAUSE);
    this.#tell("state");
  }

  /** Ask for something that is not there: 404 means that we would be let in. */
  async #askWhy() {
    const chat = this.#chat;
    const trouble = await this.#reason();
    if (chat !== this.#chat || this.state !== "connecting") return;
    if (typeof trouble === "string") {
      this.trouble = trouble;
      this.#tell("state");
      return;
    }
    this.refusal = trouble;
    clearInterval(this.#asking);
    this.#chat = null;
    this.state = "closed";
    chat?.close(); // what runs on it fails with the refusal
    this.#tell("state");
    this.#tell("refused");
  }

  /** @returns {Promise<string | Failure>} */
  async #reason() {
    try {
      const headers = this.key ? { Authorization: `Bearer ${this.key}` } : undefined;
      const response = await fetch(`${this.streamUrl}/is-anybody-there`, { headers, cache: "no-store" });
      if (response.status === 404) return "The server answers, but no WebSocket gets through to it. Trying again.";
      const { error } = await response.json();
      if (response.status === 401 || response.status === 403) return error;
      return `${error.message} Trying again.`;
    } catch {
      return "The server cannot be reached. This goes on by itself as soon as it can.";
    }
  }

  /** @param {string} type @param {unknown} [detail] */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
