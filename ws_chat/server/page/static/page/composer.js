/** Where one writes: the question, the model, send and stop. Sending while it answers interrupts. */
import { isRunning } from "./conversations.js";
import { get, make } from "./dom.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./answers.js").Answers} answers
 * @param {import("./thread.js").Thread} thread
 * @param {string[]} models The first is the server's default.
 */
export function composer(conversations, answers, thread, models) {
  const form = /** @type {HTMLFormElement} */ (get("composer"));
  const question = /** @type {HTMLTextAreaElement} */ (get("question"));
  const model = /** @type {HTMLInputElement} */ (get("model"));
  const stop = get("stop");
  const running = () => conversations.current.turns.findLast(isRunning);

  model.placeholder = models[0] ?? "the server's own";
  get("models").append(...models.map((name) => make("option", { value: name })));
  model.addEventListener("input", () => (conversations.current.model = model.value.trim()));

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value;
    if (!text.trim()) return;
    question.value = "";
    answers.ask(conversations.current, text);
    thread.toEnd();
    question.focus();
  });
  question.addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses a candidate (229 is what Safari says at its end).
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
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
    if (event.key !== "Escape" || event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (stopIt()) event.preventDefault();
  });

  const show = () => {
    stop.hidden = !running();
    const what = stop.hidden ? "sends" : "stops the answer and sends";
    get("hint").textContent = `Enter ${what}, Shift+Enter breaks the line${stop.hidden ? "" : ", Esc stops"}`;
  };
  for (const type of ["turn", "opened", "list"]) conversations.addEventListener(type, show);
  conversations.addEventListener("opened", () => {
    model.value = conversations.current.model;
    show();
  });
  model.value = conversations.current.model;
  show();
}
