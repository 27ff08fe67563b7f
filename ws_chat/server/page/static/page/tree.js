/**
 * Trees that the worker made, as elements. A node is a text, `{ tag, attributes, children }` with a tag and attributes of
 * the lists below, a block of code, or a formula with what KaTeX made of it.
 *
 * @typedef {{ tag: string, attributes: Record<string, string | number | boolean | undefined>, children: Tree[],
 *   space?: string, style?: Record<string, string> }} Branch `space`: an XML namespace.
 * @typedef {{ math: string, display: boolean, trees: Tree[] | null }} Formula `math`: as it was written.
 * @typedef {string | Branch | Formula | { code: string, language: string }} Tree
 */
import { CodeBlock } from "./code.js";
import { make } from "./dom.js";

const TAGS = new Set(
  ("a blockquote br code del div em h3 h4 h5 h6 hr input li ol p span strong table tbody td th thead tr ul").split(" "),
);
const ATTRIBUTES = new Set("aria-label checked class dir disabled href rel role start tabindex target title type".split(" "));
const LINK = /^(https?:\/\/|mailto:)/i; // javascript: and the like never

const MATH_TAGS = new Set(
  ("annotation line math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow ms mspace msqrt mstyle msub msubsup msup " +
    "mtable mtd mtext mtr munder munderover path semantics span svg").split(" "),
);
const MATH_ATTRIBUTES = new Set(
  ("accent accentunder aria-hidden class columnalign columnlines columnspacing d depth display displaystyle encoding fence " +
    "height linethickness lspace mathbackground mathcolor mathsize mathvariant maxsize minsize notation preserveAspectRatio " +
    "rowlines rowspacing rspace scriptlevel separator stretchy stroke-width symmetric viewBox voffset width x1 x2 y1 y2").split(" "),
);
const MATH_STYLE = /^[#\w .%-]+$/;

/** @param {Tree} tree @returns {Node} */
export function grow(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  if ("math" in tree) return formula(tree);
  if ("code" in tree) {
    const block = new CodeBlock(tree.language);
    block.show(tree.code, true);
    return block.element;
  }
  const { tag, attributes, children } = tree;
  if (!TAGS.has(tag)) throw new Error(`The tree has a <${tag}>.`);
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTES.has(name)) throw new Error(`The tree has an attribute ${name}.`);
    if (name === "href" && !LINK.test(String(value))) throw new Error("The tree has a link that leads nowhere.");
  }
  return make(tag, attributes, ...children.map(grow));
}

/** @param {Formula} tree */
function formula({ math, display, trees }) {
  const element = make(display ? "div" : "span", { class: "math", dir: "ltr", "data-source": math });
  if (display) element.tabIndex = 0; // it may scroll
  if (display) element.setAttribute("role", "group");
  if (display) element.setAttribute("aria-label", "Formula");
  if (!trees) {
    element.classList.add("plain");
    element.append(math);
    return element;
  }
  dress();
  element.append(...trees.map(part));
  return element;
}

/** @param {Tree} tree @returns {Node} */
function part(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  if (!("tag" in tree) || !MATH_TAGS.has(tree.tag)) throw new Error("The formula has an element of another kind.");
  const { tag, space, attributes, style, children } = tree;
  const element = /** @type {HTMLElement} */ (space ? document.createElementNS(space, tag) : document.createElement(tag));
  for (const [name, value] of Object.entries(attributes)) if (MATH_ATTRIBUTES.has(name)) element.setAttribute(name, String(value));
  // Through the object model: the page's policy allows no style attributes.
  for (const [name, value] of Object.entries(style ?? {})) if (MATH_STYLE.test(value)) /** @type {any} */ (element.style)[name] = value;
  element.append(...children.map(part));
  return element;
}

/** Load KaTeX's style sheet with the first formula. */
function dress() {
  const root = document.documentElement;
  if (root.dataset.math) return;
  root.dataset.math = "loading";
  const done = () => (root.dataset.math = "loaded");
  const href = new URL("../vendor/katex/katex.css", import.meta.url).href;
  document.head.append(make("link", { rel: "stylesheet", href, load: done, error: done }));
}
