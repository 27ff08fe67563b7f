/** The list of conversations by date, with a search. Each is a link, so that it can be opened in a second tab. */
import { answer, isRunning, path } from "./conversations.js";
import { get, icon, make, paced } from "./dom.js";

const DAY = 24 * 60 * 60 * 1000;

/**
 * Return a function that deletes a conversation.
 *
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./answers.js").Answers} answers
 * @param {(message: string, act?: { label: string, run: () => void }) => void} notify
 */
export function list(conversations, answers, notify) {
  const search = /** @type {HTMLInputElement} */ (get("search"));
  const remove = (/** @type {import("./conversations.js").Conversation} */ conversation) => {
    for (const turn of conversation.turns) answers.stop(turn);
    conversations.remove(conversation);
    notify(`“${conversation.title}” is deleted.`, { label: "Undo", run: () => conversations.restore(conversation) });
    get("question").focus();
  };
  const item = (/** @type {import("./conversations.js").Conversation} */ conversation) => {
    const { id, title, turns } = conversation;
    const failed = path(conversation).at(-1)?.state === "failed";
    const state = turns.some(isRunning) ? "running" : failed ? "failed" : undefined;
    const current = conversation === conversations.current ? "page" : undefined;
    const words = state && { running: "is answering", failed: "failed" }[state];
    const badge = make("span", { class: "badge" }, ...(words ? [make("span", { class: "unseen" }, `, ${words}`)] : []));
    const name = make("span", { dir: "auto" }, title);
    const link = make("a", { href: `#${id}`, "aria-current": current, "data-state": state, title }, name, badge);
    const label = `Delete “${title}”`;
    const button = make("button", { type: "button", class: "quiet", "aria-label": label, title: label, click: () => remove(conversation) }, icon("close"));
    return make("li", {}, link, button);
  };
  const draw = paced(() => {
    const found = conversations.list.filter((one) => fits(one, search.value));
    const state = JSON.stringify([
      found.map((known) => [known.id, known.title, known.leaf, date(known.at), known.turns.map(({ state }) => state)]),
      conversations.current.id, search.value,
    ]);
    if (shown === (shown = state)) return;
    const focused = document.activeElement?.getAttribute("href");
    const groups = grouped(found);
    const parts = [...groups].flatMap(([when, all]) => [make("h2", { class: "when" }, when), make("ul", {}, ...all.map(item))]);
    const none = search.value ? "Nothing found." : "Your conversations are kept in this browser.";
    get("conversations").replaceChildren(...(parts.length ? parts : [make("p", { class: "empty" }, none)]));
    if (!focused) return;
    const again = [...document.querySelectorAll("#conversations a")].find((link) => link.getAttribute("href") === focused);
    /** @type {HTMLElement | undefined} */ (again)?.focus();
  });
  let shown = "";
  for (const type of ["list", "opened"]) conversations.addEventListener(type, draw);
  search.addEventListener("input", draw);
  draw();
  return remove;
}

/** @param {import("./conversations.js").Conversation} conversation @param {string} search */
function fits(conversation, search) {
  const words = search.trim().toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const texts = conversation.turns.flatMap((turn) => [turn.question, answer(turn)]);
  const all = [conversation.title, ...texts].join("\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

/** @param {number} at */
function date(at) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (at >= midnight) return "Today";
  if (at >= midnight - DAY) return "Yesterday";
  if (at >= midnight - 7 * DAY) return "Last 7 days";
  return new Date(at).toLocaleDateString("en", { month: "long", year: "numeric" });
}

/** @param {import("./conversations.js").Conversation[]} found */
function grouped(found) {
  /** @type {Map<string, import("./conversations.js").Conversation[]>} */
  const groups = new Map();
  for (const one of found) groups.set(date(one.at), [...(groups.get(date(one.at)) ?? []), one]);
  return groups;
}
