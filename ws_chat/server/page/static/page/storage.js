/**
 * What this browser keeps: conversations, so that a refresh or a second tab goes on with them. Bounded: when there is no
 * room the oldest go first. Other tabs write here too; `watch` tells what they wrote.
 *
 * @typedef {import("./conversations.js").Conversation} Conversation
 */

/** A storage that ends with the page, where the browser has none to give. @implements {Storage} */
class Memory {
  /** @type {Map<string, string>} */ #values = new Map();
  get length() {
    return this.#values.size;
  }
  key = (/** @type {number} */ place) => [...this.#values.keys()][place] ?? null;
  getItem = (/** @type {string} */ key) => this.#values.get(key) ?? null;
  setItem = (/** @type {string} */ key, /** @type {string} */ value) => void this.#values.set(key, value);
  removeItem = (/** @type {string} */ key) => void this.#values.delete(key);
  clear = () => this.#values.clear();
}

/** @param {"localStorage" | "sessionStorage"} name @returns {Storage} */
function usable(name) {
  try {
    globalThis[name].getItem(""); // where a user forbids it, looking at it is an error
    return globalThis[name];
  } catch {
    return new Memory();
  }
}

export const local = usable("localStorage");
export const session = usable("sessionStorage");

/** What every name begins with: pages under other paths of one host, perhaps other people's, keep their own. */
export const OURS = `ws_chat:${new URL(".", document.baseURI).pathname}:`;
const PREFIX = `${OURS}conversation.`;
const DRAFT = `${OURS}draft.`;
const MOST_DRAFT = 50_000;
const ID = /^[A-Za-z0-9._:-]{1,128}$/;
const STATES = ["asked", "running", "completed", "cancelled", "failed"];
const MOST_CONVERSATIONS = 500;
const MOST_CHARACTERS = 2_000_000; // browsers give a site about 5 MB

/** Return what is kept, in no order. @returns {Conversation[]} */
export function load() {
  return keys().map((key) => parse(read(key))).filter((found) => found !== null);
}

/**
 * Keep a conversation. Return whether there was room, and which others were removed to make some.
 *
 * @param {Conversation} conversation
 * @returns {{ kept: boolean, removed: Conversation[] }}
 */
export function save(conversation) {
  const text = JSON.stringify(conversation);
  /** @type {Conversation[]} */
  const removed = [];
  if (text.length > MOST_CHARACTERS) return { kept: false, removed }; // before anything else makes room for it in vain
  const own = PREFIX + conversation.id;
  const fits = () => others(own).length < MOST_CONVERSATIONS && used(own) + text.length <= MOST_CHARACTERS;
  for (const key of fits() ? [] : oldestFirst(own)) {
    const old = parse(read(key));
    if (old) removed.push(old);
    local.removeItem(key);
    if (fits()) break;
  }
  try {
    local.setItem(own, text);
    return { kept: true, removed };
  } catch {
    return { kept: false, removed }; // the page says so, and goes on without
  }
}

/** @param {string} id */
export function forget(id) {
  local.removeItem(PREFIX + id);
  local.removeItem(DRAFT + id);
}

/** Return what was typed and not sent. @param {string} id */
export function draft(id) {
  return local.getItem(DRAFT + id) ?? "";
}

/** @param {string} id @param {string} text */
export function saveDraft(id, text) {
  try {
    if (text && text.length < MOST_DRAFT) local.setItem(DRAFT + id, text);
    else local.removeItem(DRAFT + id);
  } catch {
    // there is no room: it ends with the page
  }
}

/**
 * Tell what other tabs write, and (with null) what they delete.
 *
 * @param {(id: string, conversation: Conversation | null) => void} tell
 */
export function watch(tell) {
  addEventListener("storage", ({ key, newValue }) => {
    if (key?.startsWith(PREFIX)) tell(key.slice(PREFIX.length), parse(newValue));
  });
}

function keys() {
  return Array.from({ length: local.length }, (_, place) => local.key(place) ?? "").filter((key) => key.startsWith(PREFIX));
}

/** @param {string} own */
function others(own) {
  return keys().filter((key) => key !== own);
}

/** @param {string} own */
function used(own) {
  return others(own).reduce((sum, key) => sum + (read(key) ?? "").length, 0);
}

/** @param {string} own */
function oldestFirst(own) {
  const age = new Map(others(own).map((key) => [key, parse(read(key))?.at ?? 0]));
  return [...age.keys()].sort((one, other) => (age.get(one) ?? 0) - (age.get(other) ?? 0));
}

/** @param {string} key */
function read(key) {
  return local.getItem(key);
}

/** Whether this is of the shape that is written here, and not of another version's. @param {any} turn */
function isTurn(turn) {
  const texts = [turn?.question, turn?.text, turn?.reasoning];
  const said = texts.every((text) => typeof text === "string") && Array.isArray(turn.toolCalls);
  return said && ID.test(turn.id) && STATES.includes(turn.state);
}

/** @param {string | null} text @returns {Conversation | null} */
function parse(text) {
  try {
    const found = JSON.parse(text ?? "null");
    if (typeof found?.id !== "string" || !Array.isArray(found.turns) || !found.turns.every(isTurn)) return null;
    return current(found);
  } catch {
    return null;
  }
}

/** Bring what an earlier version of this page wrote to the shape of today. @param {any} found @returns {Conversation} */
function current(found) {
  found.turns = found.turns.map((/** @type {any} */ turn, /** @type {number} */ place) => ({
    parent: found.turns[place - 1]?.id ?? null, images: [], before: "", ...turn,
  }));
  return { system: "", leaf: found.turns.at(-1)?.id ?? null, ...found };
}
