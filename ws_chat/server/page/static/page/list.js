/** The list of conversations. Each is a link, so that it can be opened in a second tab, which then types along. */
import { isRunning } from "./conversations.js";
import { get, make, paced } from "./dom.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./answers.js").Answers} answers
 * @param {(message: string, act?: { label: string, run: () => void }) => void} notify
 */
export function list(conversations, answers, notify) {
  const remove = (/** @type {import("./conversations.js").Conversation} */ conversation) => {
    for (const turn of conversation.turns) answers.stop(turn);
    conversations.remove(conversation);
    notify(`“${conversation.title}” is deleted.`, { label: "Undo", run: () => conversations.restore(conversation) });
    get("question").focus();
  };
  const item = (/** @type {import("./conversations.js").Conversation} */ conversation) => {
    const { id, title, turns } = conversation;
    const state = turns.some(isRunning) ? "running" : turns.at(-1)?.state === "failed" ? "failed" : undefined;
    const current = conversation === conversations.current ? "page" : undefined;
    const words = state && { running: "is answering", failed: "failed" }[state];
    const badge = make("span", { class: "badge" }, ...(words ? [make("span", { class: "unseen" }, `, ${words}`)] : []));
    const link = make("a", { href: `#${id}`, "aria-current": current, "data-state": state }, make("span", {}, title), badge);
    const label = `Delete “${title}”`;
    const button = make("button", { type: "button", class: "quiet", "aria-label": label, click: () => remove(conversation) }, "✕");
    return make("li", {}, link, button);
  };
  let shown = "";
  const draw = paced(() => {
    const state = JSON.stringify(
      conversations.list.map((known) => [known.id, known.title, known.turns.map(({ state }) => state)]),
    );
    if (shown === (shown = state + conversations.current.id)) return;
    const focused = document.activeElement?.getAttribute("href");
    get("conversations").replaceChildren(...conversations.list.map(item));
    if (!focused) return;
    const again = [...document.querySelectorAll("#conversations a")].find((link) => link.getAttribute("href") === focused);
    /** @type {HTMLElement | undefined} */ (again)?.focus();
  });
  for (const type of ["list", "opened"]) conversations.addEventListener(type, draw);
  draw();
}
