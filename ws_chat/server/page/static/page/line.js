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
const LONGEST_PAUSE = 30_000;

const NO_SOCKET = "The server answers, but no WebSocket gets through to it. Trying again.";

/** Events: `state`, `refused`, `moved` (there is a new connection), `sent` and `received` (detail: a frame's text). */
export class Line extends EventTarget {
  /** Why the server lets nobody in, until another key is tried. @type {Failure | null} */ refusal = null;
  /** Why there is no contact just now. */ trouble = "";
  /** @type {"connecting" | "open" | "closed"} */ state = "closed";
  /** @type {import("../ws-chat.js").Chat | null} */ #chat = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #asking;
  /** How long to wait before the next attempt; it grows while they fail. */ #pause = 0;

  /** Where the server is. */
  base = new URL(".", document.baseURI);

  get socketUrl() {
    return new URL("v1/chat/ws", this.base).href.replace(/^http/, "ws");
  }

  get streamUrl() {
    return new URL("v1/chat/stream", this.base).href;
  }

  /** Return the models that the server offers; none where it does not say. @returns {Promise<string[]>} */
  async models() {
    try {
      const headers = this.key ? { Authorization: `Bearer ${this.key}` } : undefined;
      const response = await fetch(new URL("v1/chat/models", this.base), { headers });
      const { data } = await response.json();
      return data.map((/** @type {any} */ model) => model.id).filter((/** @type {unknown} */ id) => typeof id === "string");
    } catch {
      return []; // any name can be typed
    }
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
    this.#pause = 0;
    this.#tell("moved");
    old?.close();
  }

  constructor() {
    super();
    addEventListener("offline", () => this.#tell("state"));
    addEventListener("online", () => this.#retry());
    document.addEventListener("visibilitychange", () => this.#retry());
  }

  /** Try again now what waits for the network, or for somebody who looks. */
  #retry() {
    if (this.state === "closed" && this.#chat && !document.hidden) void this.#askWhy();
    this.#tell("state");
  }

  /** @param {"connecting" | "open" | "closed"} state */
  #changed(state) {
    this.state = state;
    clearTimeout(this.#asking);
    if (state === "open") [this.trouble, this.#pause] = ["", 0];
    else this.#asking = setTimeout(() => this.#askWhy(), state === "closed" ? this.#pause : PAUSE);
    this.#tell("state");
  }

  /** Find out why there is no connection, and try again where that may help. */
  async #askWhy() {
    const chat = this.#chat;
    clearTimeout(this.#asking);
    if (!chat || document.hidden) return; // it is asked when the page is looked at again
    const first = !this.#pause;
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2 || PAUSE / 2);
    const { refusal, trouble } = await this.#reason();
    if (chat !== this.#chat || this.state === "open") return;
    if (refusal) {
      this.refusal = refusal;
      this.#chat = null;
      this.state = "closed";
      chat.close(); // what runs on it fails with the refusal
      this.#tell("state");
      this.#tell("refused");
      return;
    }
    if (trouble !== NO_SOCKET || !first) this.trouble = trouble;
    if (trouble === NO_SOCKET && this.state === "closed") chat.open();
    else this.#asking = setTimeout(() => this.#askWhy(), this.#pause);
    this.#tell("state");
  }

  /** Ask for something that is not there: 404 means that we would be let in. @returns {Promise<{ refusal?: Failure, trouble: string }>} */
  async #reason() {
    try {
      const headers = this.key ? { Authorization: `Bearer ${this.key}` } : undefined;
      const response = await fetch(`${this.streamUrl}/is-anybody-there`, { headers, cache: "no-store" });
      if (response.status === 404) return { trouble: NO_SOCKET };
      const { error } = await response.json();
      if (response.status === 401 || response.status === 403) return { refusal: error, trouble: "" };
      return { trouble: `${error.message} Trying again.` };
    } catch {
      return { trouble: "The server cannot be reached. This goes on by itself as soon as it can." };
    }
  }

  /** @param {string} type @param {unknown} [detail] */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
