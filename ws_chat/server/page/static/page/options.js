/** What a conversation is asked with: the model, a system prompt and a temperature. */
import { get, make } from "./dom.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./line.js").Line} line
 * @param {string[]} names The models that the page was served with, the default first.
 */
export function options(conversations, line, names) {
  const model = /** @type {HTMLSelectElement} */ (get("model"));
  const name = /** @type {HTMLInputElement} */ (get("model-name"));
  const system = /** @type {HTMLTextAreaElement} */ (get("system"));
  const temperature = /** @type {HTMLInputElement} */ (get("temperature"));
  const other = make("option", {}, "Another model…");
  let offered = names;
  const offer = () => {
    const chosen = conversations.current.model;
    const [first, ...rest] = new Set([names[0] ?? "", ...offered, chosen]);
    const all = [make("option", { value: "" }, first || "Default model"), ...rest.filter(Boolean).map((value) => make("option", { value }, value))];
    model.replaceChildren(...all, other);
    model.value = chosen === first ? "" : chosen;
  };

  const show = () => {
    const { current } = conversations;
    offer();
    system.value = current.system;
    temperature.value = current.temperature === undefined ? "" : String(current.temperature);
    mark();
  };
  const mark = () => {
    const { system: text, temperature: heat } = conversations.current;
    get("open-options").dataset.set = String(Boolean(text) || heat !== undefined);
  };
  const changed = () => {
    const { current } = conversations;
    const heat = temperature.value === "" ? undefined : Number(temperature.value);
    Object.assign(current, { system: system.value.trim() ? system.value : "", temperature: heat });
    mark();
    if (current.turns.length) conversations.save(current);
  };
  for (const field of [system, temperature]) field.addEventListener("change", changed);

  const choose = (/** @type {string} */ value) => {
    conversations.current.model = value;
    offer();
    changed();
  };
  const typing = (/** @type {boolean} */ on) => {
    name.hidden = !on;
    model.hidden = on;
  };
  model.addEventListener("change", () => {
    if (model.selectedOptions[0] !== other) return choose(model.value);
    typing(true);
    name.focus();
  });
  name.addEventListener("blur", () => {
    choose(name.value.trim() || conversations.current.model);
    name.value = "";
    typing(false);
  });
  name.addEventListener("keydown", (event) => {
    if ((event.key !== "Enter" && event.key !== "Escape") || event.isComposing) return;
    event.preventDefault(); // Enter would send the message, Escape stop the answer
    if (event.key === "Escape") name.value = "";
    name.blur();
    model.focus();
  });
  conversations.addEventListener("opened", show);

  const panel = get("options");
  panel.addEventListener("beforetoggle", () => {
    const { left, top } = get("composer").getBoundingClientRect();
    Object.assign(panel.style, { left: `${left}px`, bottom: `${innerHeight - top + 8}px` });
  });

  let asked = "";
  line.addEventListener("state", async () => {
    if (line.state !== "open" || asked === `key ${line.key}`) return;
    asked = `key ${line.key}`;
    const found = await line.models();
    if (!found.length) return;
    offered = [...names, ...found];
    offer();
  });
  show();
}
