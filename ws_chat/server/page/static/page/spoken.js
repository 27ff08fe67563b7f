/**
 * What a screen reader hears. The answer that types is no live region, which would be read again with every token:
 * each block is told here once, when it is finished.
 */
import { get, make } from "./dom.js";

const MOST = 40; // what was told is not needed any more, but must not go before it was read

/** @param {string} text */
export function say(text) {
  const place = get("spoken");
  if (text.trim()) place.append(make("p", {}, text));
  while (place.childElementCount > MOST) place.firstElementChild?.remove();
}

/** @param {HTMLElement} block */
export function sayBlock(block) {
  const code = block.querySelector("pre");
  if (block.matches(".math, :has(.math)")) return say(formulas(block));
  if (!block.matches("figure.code") || !code) return say(block.innerText); // which parts the items of a list
  const lines = (code.textContent ?? "").split("\n").length;
  const label = code.getAttribute("aria-label");
  say(`${label}, ${lines} ${lines === 1 ? "line" : "lines"}.`);
}

/** Return a block's text with its formulas as they were written. @param {HTMLElement} block */
function formulas(block) {
  const copy = /** @type {HTMLElement} */ (block.cloneNode(true));
  for (const math of copy.querySelectorAll(".math")) math.textContent = /** @type {HTMLElement} */ (math).dataset.source ?? "";
  return block.dataset.source ?? copy.textContent ?? "";
}
