/**
 * What has been said: the one place where the page's state is kept. Everything else draws it, or changes it here.
 *
 * A conversation is a list of turns, each a question and its answer. An answer's state:
 * `asked` (nothing was heard), `running`, and at its end `completed`, `cancelled` or `failed`.
 *
 * @typedef {{ code: string, message: string, status?: number, retryable: boolean, param?: string | null }} Failure
 * @typedef {"asked" | "running" | "completed" | "cancelled" | "failed"} State
 * @typedef {{ id: string, question: string, state: State, known: boolean, epoch?: string, previousId?: string, asked?: string,
 *   text: string, reasoning: string, toolCalls: any[], error?: Failure, model?: string, usage?: any, timing?: any,
 *   finishReason?: string | null }} Turn
 *   `id` and `epoch` name the generation, `asked` is the model that was asked for, `known` says whether the server took it.
 * @typedef {{ id: string, title: string, at: number, model: string, turns: Turn[] }} Conversation `at`: ms since 1970.
 */
import * as storage from "./storage.js";

/** Events: `list`, `opened`, and with a detail `turn` ({ conversation, turn }) and `full`. */
export class Conversations extends EventTarget {
  /** @type {Map<string, Conversation>} */ #all = new Map();
  /** @type {Conversation} */ current = blank();
  /** Whether this tab reads a turn's answer itself. @type {(turn: Turn) => boolean} */ follows = () => false;

  constructor() {
    super();
    for (const conversation of storage.load()) this.#all.set(conversation.id, conversation);
    storage.watch((id, conversation) => this.#fromElsewhere(id, conversation));
  }

  /** The newest first. */
  get list() {
    return [...this.#all.values()].sort((one, other) => other.at - one.at);
  }

  /** Open a conversation; an id that is not known opens a new one. @param {string} [id] */
  open(id) {
    this.current = this.#all.get(id ?? "") ?? blank(this.current.model);
    this.#tell("opened");
  }

  /** Add a turn. @param {Conversation} conversation @param {Partial<Turn> & { id: string, question: string }} given */
  add(conversation, given) {
    const turn = { state: /** @type {State} */ ("asked"), known: false, text: "", reasoning: "", toolCalls: [], ...given };
    if (!conversation.turns.length) conversation.title = title(turn.question);
    conversation.turns.push(turn);
    conversation.at = Date.now();
    this.#all.set(conversation.id, conversation);
    this.changed(conversation, turn);
    this.save(conversation);
    this.#tell("list");
    return turn;
  }

  /** Drop a turn and all that came after it. @param {Conversation} conversation @param {Turn} turn */
  cut(conversation, turn) {
    conversation.turns.splice(conversation.turns.indexOf(turn));
    if (conversation === this.current) this.#tell("opened");
  }

  /** Tell that a turn has changed. @param {Conversation} conversation @param {Turn} turn */
  changed(conversation, turn) {
    this.#tell("turn", { conversation, turn });
  }

  /** @param {Conversation} conversation */
  save(conversation) {
    if (this.#all.has(conversation.id) && !storage.save(conversation)) this.#tell("full", { conversation });
    this.#tell("list");
  }

  /** Keep what has come so far, in case that the page goes away. */
  saveRunning() {
    for (const conversation of this.list) if (conversation.turns.some(isRunning)) this.save(conversation);
  }

  /** @param {Conversation} conversation */
  remove(conversation) {
    this.#all.delete(conversation.id);
    storage.forget(conversation.id);
    this.#tell("list");
    if (conversation === this.current) this.open();
  }

  /** Put back what was removed. @param {Conversation} conversation */
  restore(conversation) {
    this.#all.set(conversation.id, conversation);
    this.save(conversation);
  }

  /** Take what another tab wrote. A turn that this one follows itself is left as it is: it is as new. */
  #fromElsewhere(/** @type {string} */ id, /** @type {Conversation | null} */ written) {
    const known = this.#all.get(id);
    if (!written) {
      this.#all.delete(id);
      if (known === this.current) this.open();
    } else if (known) {
      const followed = new Map(known.turns.filter(this.follows).map((turn) => [turn.id, turn]));
      const turns = written.turns.map((turn) => followed.get(turn.id) ?? turn);
      for (const turn of followed.values()) if (!turns.includes(turn)) turns.push(turn); // both have asked at once
      Object.assign(known, written, { turns });
      if (known === this.current) this.#tell("opened");
    } else this.#all.set(id, written);
    this.#tell("list");
    this.#tell("elsewhere");
  }

  /** @param {string} type @param {unknown} [detail] */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** Whether more is to come. @param {Turn} turn */
export function isRunning(turn) {
  return turn.state === "asked" || turn.state === "running";
}

/** @returns {Conversation} */
function blank(model = "") {
  return { id: Math.random().toString(36).slice(2, 12), title: "New conversation", at: 0, model, turns: [] };
}

/** @param {string} question */
function title(question) {
  const line = question.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
