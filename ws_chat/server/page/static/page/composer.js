/** Where one writes: the question and its images, send and stop. Sending while it answers interrupts. */
import { Attachments } from "./attachments.js";
import { isRunning, path } from "./conversations.js";
import { get } from "./dom.js";
import { draft, saveDraft } from "./storage.js";

const touch = matchMedia("(hover: none) and (pointer: coarse)");

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./answers.js").Answers} answers
 * @param {import("./thread.js").Thread} thread
 * @param {{ maxBytes: number, notify: (message: string) => void }} options
 */
export function composer(conversations, answers, thread, { maxBytes, notify }) {
  const form = /** @type {HTMLFormElement} */ (get("composer"));
  const question = /** @type {HTMLTextAreaElement} */ (get("question"));
  const [send, stop] = [get("send"), get("stop")];
  const running = () => path(conversations.current).findLast(isRunning);
  let shown = conversations.current.id;
  const keep = () => saveDraft(conversations.current.turns.length ? shown : "new", question.value);

  const show = () => {
    const runs = Boolean(running());
    const empty = !question.value.trim() && !attachments.ids.length;
    const focused = document.activeElement;
    stop.hidden = !runs || !empty; // Stop stands in the place of Send while there is nothing to send
    send.hidden = !stop.hidden;
    if (focused === send && send.hidden) stop.focus();
    else if (focused === stop && stop.hidden) question.focus();
    const enter = touch.matches ? "" : `Enter ${runs ? "stops the answer and sends" : "sends"}, Shift+Enter for a new line`;
    get("hint").textContent = runs && empty ? "Esc stops" : enter;
    question.setAttribute("enterkeyhint", touch.matches ? "enter" : "send");
  };
  const attachments = new Attachments({ maxBytes, notify, changed: show });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value;
    if (!text.trim() && !attachments.ids.length) return;
    const images = attachments.take();
    question.value = "";
    keep();
    answers.ask(conversations.current, text, { images });
    thread.toEnd();
    question.focus();
    show();
  });
  question.addEventListener("input", () => {
    keep();
    show();
  });
  question.addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses a candidate (229 is what Safari says at its end). A keyboard on the
    // screen has no Shift+Enter, so that Enter is a new line there, and the button sends.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (touch.matches && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    form.requestSubmit();
  });
  const stopIt = () => {
    const turn = running();
    if (turn) answers.stop(turn);
    return Boolean(turn);
  };
  stop.addEventListener("click", () => {
    stopIt();
    question.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || event.defaultPrevented) return;
    if (document.querySelector("dialog[open], :popover-open")) return;
    if (stopIt()) event.preventDefault();
  });
  touch.addEventListener("change", show);
  for (const type of ["turn", "list"]) conversations.addEventListener(type, show);
  const open = () => {
    const { id, turns } = conversations.current;
    question.value = draft(turns.length ? id : "new");
    shown = id;
    show();
  };
  conversations.addEventListener("opened", () => {
    if (conversations.current.id === shown) show();
    else open();
  });
  open();
}
