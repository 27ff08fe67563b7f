/**
 * What has been said: the one place where the page's state is kept. Everything else draws it, or changes it here.
 *
 * A conversation is a tree of turns, each a question and its answer: a question that is edited and an answer that is asked
 * for again are another version beside the first, with the same parent. `leaf` is the end of the path that is shown. An
 * answer's state: `asked` (nothing was heard), `running`, and at its end `completed`, `cancelled` or `failed`.
 *
 * @typedef {{ code: string, message: string, status?: number, retryable: boolean, param?: string | null }} Failure
 * @typedef {"asked" | "running" | "completed" | "cancelled" | "failed"} State
 * @typedef {{ id: string, parent: string | null, question: string, images: string[], state: State, known: boolean,
 *   epoch?: string, previousId?: string, asked?: string, system?: string, temperature?: number, before: string, text: string,
 *   reasoning: string, thought?: number, toolCalls: any[], error?: Failure, model?: string, usage?: any, timing?: any,
 *   finishReason?: string | null }} Turn
 *   `id` and `epoch` name the generation; `asked` is the model that was asked for; `known`: the server took it; `before`:
 *   the part of the answer that `text` continues; `images`: as images.js names them; `thought`: milliseconds of reasoning.
 * @typedef {{ id: string, title: string, at: number, model: string, system: string, temperature?: number, leaf: string | null,
 *   turns: Turn[] }} Conversation `at`: ms since 1970.
 */
import { withoutDelimiters } from "./math.js";
import * as storage from "./storage.js";

/** Events: `list`, `opened`, and with a detail `turn` ({ conversation, turn }), `full` and `evicted` ({ conversation }). */
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
    const { model, system, temperature } = this.current;
    this.current = this.#all.get(id ?? "") ?? blank({ model, system, temperature });
    this.#tell("opened");
  }

  /**
   * Add a turn below `parent` (null: at the beginning), and show it.
   *
   * @param {Conversation} conversation
   * @param {Partial<Turn> & { id: string, parent: string | null, question: string }} given
   */
  add(conversation, given) {
    /** @type {Turn} */
    const turn = { images: [], state: "asked", known: false, before: "", text: "", reasoning: "", toolCalls: [], ...given };
    if (!conversation.turns.length) conversation.title = title(turn.question);
    conversation.turns.push(turn);
    conversation.leaf = turn.id;
    conversation.at = Date.now();
    this.#all.set(conversation.id, conversation);
    this.changed(conversation, turn);
    this.save(conversation);
    this.#tell("list");
    return turn;
  }

  /** Give a turn another id, which its children follow. @param {Conversation} conversation @param {Turn} turn @param {string} id */
  rename(conversation, turn, id) {
    for (const child of conversation.turns) if (child.parent === turn.id) child.parent = id;
    if (conversation.leaf === turn.id) conversation.leaf = id;
    turn.id = id;
  }

  /** Take a turn out that has no answer. @param {Conversation} conversation @param {Turn} turn */
  drop(conversation, turn) {
    conversation.turns = conversation.turns.filter((known) => known !== turn);
    if (conversation.leaf === turn.id) conversation.leaf = turn.parent;
  }

  /** Show another version of a turn. @param {Conversation} conversation @param {Turn} version */
  show(conversation, version) {
    let leaf = version;
    for (let next; (next = conversation.turns.findLast(({ parent }) => parent === leaf.id)); ) leaf = next;
    conversation.leaf = leaf.id;
    this.save(conversation);
    if (conversation === this.current) this.#tell("opened");
  }

  /** @param {Conversation} conversation @param {string} title */
  retitle(conversation, title) {
    conversation.title = title;
    this.save(conversation);
    if (conversation === this.current) this.#tell("opened");
  }

  /** Tell that a turn has changed. @param {Conversation} conversation @param {Turn} turn */
  changed(conversation, turn) {
    this.#tell("turn", { conversation, turn });
  }

  /** @param {Conversation} conversation */
  save(conversation) {
    if (this.#all.has(conversation.id)) {
      const { kept, removed } = storage.save(conversation);
      if (!kept) this.#tell("full", { conversation });
      for (const old of removed) {
        if (old.id !== this.current.id) this.#all.delete(old.id);
        this.#tell("evicted", { conversation: old });
      }
    }
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

/** Return the turns from the beginning to `end`, by default those that are shown. @param {Conversation} conversation */
export function path({ turns, leaf }, end = leaf) {
  /** @type {Turn[]} */
  const found = [];
  const known = new Map(turns.map((turn) => [turn.id, turn]));
  for (let turn = known.get(end ?? ""); turn && !found.includes(turn); turn = known.get(turn.parent ?? "")) found.unshift(turn);
  return found;
}

/** Return the versions of a turn, itself among them. @param {Conversation} conversation @param {Turn} turn */
export function versions({ turns }, turn) {
  return turns.filter(({ parent }) => parent === turn.parent);
}

/** The whole answer. @param {Turn} turn */
export function answer(turn) {
  return turn.before + turn.text;
}

/** @param {Partial<Conversation>} [like] @returns {Conversation} */
function blank({ model = "", system = "", temperature } = {}) {
  const id = Math.random().toString(36).slice(2, 12);
  return { id, title: "New conversation", at: 0, model, system, temperature, leaf: null, turns: [] };
}

/** @param {string} question */
function title(question) {
  const start = withoutDelimiters(question.trim().slice(0, 1000)); // of a text of megabytes it would take long
  const line = start.trim().split("\n", 1)[0] || "Image";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
