/**
 * Elements. A text is only ever set as text: nothing on this page reads HTML, so what a model writes cannot become any.
 */

/**
 * Make an element. An attribute that is a function listens, one that is a boolean is there or not.
 *
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {(Node | string)[]} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, /** @type {EventListener} */ (value));
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return one of the icons that page.html has. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Make a button with an icon, and its name, which is left out where there is little room. @param {string} name @param {string} label @param {() => void} click */
export function button(name, label, click) {
  return make("button", { type: "button", class: "quiet with-icon", title: label, click }, icon(name), make("span", { class: "label" }, label));
}

/** Return the element of the page with this id. @param {string} id */
export function get(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`There is no #${id}.`);
  return element;
}

/**
 * Bring `old` to look like `fresh` by replacing only what differs, so that selections and scroll positions stay.
 *
 * @param {Element} old
 * @param {Element} fresh
 */
export function settle(old, fresh) {
  const given = [...fresh.childNodes];
  given.forEach((node, place) => {
    const known = old.childNodes[place];
    if (!known) old.append(node);
    else if (known.isEqualNode(node)) return;
    else if (alike(known, node)) settle(/** @type {Element} */ (known), /** @type {Element} */ (node));
    else known.replaceWith(node);
  });
  while (old.childNodes.length > given.length) old.lastChild?.remove();
}

/** Whether two elements are the same but for what is in them. @param {Node | null} one @param {Node | null} other */
export function alike(one, other) {
  if (!(one instanceof Element && other instanceof Element)) return false;
  return one.cloneNode().isEqualNode(other.cloneNode());
}

/** Return a function that runs `draw` once in the next animation frame, however often it is called before. */
export function paced(/** @type {() => void} */ draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** Copy a text, and say on the button that it is done. @param {string} text @param {HTMLElement} button */
export async function copy(text, button) {
  const place = button.querySelector(".label") ?? button;
  const label = (button.dataset.label ??= place.textContent ?? "");
  try {
    // Only https pages and localhost have a clipboard; http on a local network is an everyday case.
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelecting(text);
    place.textContent = "Copied";
  } catch {
    place.textContent = "Not copied";
  }
  setTimeout(() => (place.textContent = label), 1500);
}

/** @param {string} text */
function copyBySelecting(text) {
  const field = /** @type {HTMLTextAreaElement} */ (make("textarea", { class: "unseen" }));
  const focused = document.activeElement;
  field.value = text;
  (focused?.closest("dialog") ?? document.body).append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  if (!copied) throw new Error("The browser did not copy.");
}
