/** What a conversation is asked with: the model, a system prompt and a temperature. */
import { get, make } from "./dom.js";

/**
 * @param {import("./conversations.js").Conversations} conversations
 * @param {import("./line.js").Line} line
 * @param {string[]} names The models that the page was served with, the default first.
 */
export function options(conversations, line, names) {
  const model = /** @type {HTMLInputElement} */ (get("model"));
  const system = /** @type {HTMLTextAreaElement} */ (get("system"));
  const temperature = /** @type {HTMLInputElement} */ (get("temperature"));
  const offer = (/** @type {string[]} */ list) => get("models").replaceChildren(...list.map((value) => make("option", { value })));

  model.placeholder = names[0] ?? "Default model";
  offer(names);
  const show = () => {
    const { current } = conversations;
    model.value = current.model;
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
    Object.assign(current, { model: model.value.trim(), system: system.value.trim() ? system.value : "", temperature: heat });
    mark();
    if (current.turns.length) conversations.save(current);
  };
  for (const field of [model, system, temperature]) field.addEventListener("change", changed);
  model.addEventListener("input", () => (conversations.current.model = model.value.trim()));
  // A list of suggestions shows only what fits to what is there, so that a click makes room for all.
  model.addEventListener("pointerdown", () => {
    if (document.activeElement === model || !model.value) return;
    model.value = "";
    model.addEventListener("blur", () => {
      if (!model.value) model.value = conversations.current.model; // unless it was emptied by hand
    }, { once: true });
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
    if (found.length) offer([...new Set([...names, ...found])]);
  });
  show();
}
