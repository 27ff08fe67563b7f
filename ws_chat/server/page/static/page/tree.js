/**
 * Trees that the worker made, as elements. A node is a text, or `{ tag, attributes, children }` with a tag and attributes
 * of the lists below, or a block of code.
 *
 * @typedef {{ tag: string, attributes: Record<string, string | number | boolean | undefined>, children: Tree[] }} Branch
 * @typedef {string | Branch | { code: string, language: string }} Tree
 */
import { CodeBlock } from "./code.js";
import { make } from "./dom.js";

const TAGS = new Set(
  ("a blockquote br code del div em h3 h4 h5 h6 hr input li ol p span strong table tbody td th thead tr ul").split(" "),
);
const ATTRIBUTES = new Set("aria-label checked class dir disabled href rel role start tabindex target title type".split(" "));
const LINK = /^(https?:\/\/|mailto:)/i; // javascript: and the like never

/** @param {Tree} tree @returns {Node} */
export function grow(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
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
