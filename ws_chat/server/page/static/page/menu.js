/** What can be done with the open conversation: rename it, save it as a file, delete it. */
import { get } from "./dom.js";
import { saveJSON, saveMarkdown } from "./export.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {(conversation: import("./conversations.js").Conversation) => void} remove
 */
export function menu(conversations, remove) {
  const popover = /** @type {HTMLElement & { hidePopover: () => void }} */ (get("menu"));
  const dialog = /** @type {HTMLDialogElement} */ (get("rename"));
  const title = /** @type {HTMLInputElement} */ (get("rename-title"));
  /** @type {Record<string, () => void>} */
  const actions = {
    "menu-rename": () => {
      title.value = conversations.current.title;
      dialog.showModal();
      title.select();
    },
    "menu-markdown": () => saveMarkdown(conversations.current),
    "menu-json": () => void saveJSON(conversations.current),
    "menu-delete": () => remove(conversations.current),
  };
  for (const [id, act] of Object.entries(actions)) {
    get(id).addEventListener("click", () => {
      popover.hidePopover();
      act();
    });
  }
  dialog.addEventListener("submit", (event) => {
    if (event.submitter === get("rename-use") && title.value.trim()) {
      conversations.retitle(conversations.current, title.value.trim().slice(0, 200));
    }
  });
  title.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // Enter presses the first button of a form, which is the one that cancels
    get("rename-use").click();
  });
  const show = () => (get("open-menu").hidden = !conversations.current.turns.length);
  for (const type of ["opened", "list"]) conversations.addEventListener(type, show);
  show();
}
