/** The dialog for the key, and how the connection is. */
import { get, make } from "./dom.js";

const STATES = { open: "Connected", connecting: "Connecting…", closed: "Not connected" };

/**
 * @param {import("./line.js").Line} line
 * @param {boolean} needsKey
 * @param {(message: string, act?: { label: string, run: () => void }) => void} notify
 */
export function key(line, needsKey, notify) {
  const dialog = /** @type {HTMLDialogElement} */ (get("key"));
  const value = /** @type {HTMLInputElement} */ (get("key-value"));
  const keeps = /** @type {HTMLInputElement} */ (get("key-keep"));
  const use = get("key-use");
  const ask = (why = needsKey ? "This server asks for a key." : "This server asks for none.") => {
    get("key-why").textContent = why;
    value.value = line.key;
    keeps.checked = line.keeps;
    if (!dialog.open) dialog.showModal();
    value.select();
  };
  get("open-key").addEventListener("click", () => ask());
  // Not on `close`, which comes with the next picture: something may have been asked by then, with the old key.
  dialog.addEventListener("submit", (event) => {
    if (event.submitter === use) line.use(value.value.trim(), keeps.checked);
  });
  dialog.addEventListener("close", () => (value.value = ""));
  // Enter in a field presses the first button of a form, which is the one that cancels.
  value.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    use.click();
  });

  let trouble = "";
  line.addEventListener("state", () => {
    get("state").textContent = line.state !== "open" && !navigator.onLine ? "Offline" : STATES[line.state];
    get("state").dataset.state = line.state;
    if (trouble !== (trouble = line.trouble)) notify(trouble);
  });
  line.addEventListener("refused", () => {
    if (line.refusal?.status === 401) ask(line.refusal.message);
  });
  if (needsKey && !line.key) ask();
}

/**
 * Return a function that shows a message until the next one; an empty one hides it.
 *
 * @returns {(message: string, act?: { label: string, run: () => void }) => void}
 */
export function notices() {
  const place = get("notice");
  return (message, act) => {
    const hide = () => (place.hidden = true);
    const run = () => {
      hide();
      act?.run();
    };
    const button = act ? make("button", { type: "button", class: "quiet", click: run }, act.label) : "";
    const close = make("button", { type: "button", class: "quiet", "aria-label": "Close the message", click: hide }, "✕");
    place.replaceChildren(make("span", {}, message), button, close);
    place.hidden = !message;
  };
}
