/**
 * Formulas in Markdown, in the worker: `$…$` and `\(…\)` in a line, `$$…$$` and `\[…\]` apart from it. Found before the
 * rules of Markdown, whose backslashes and underscores mean something else, and made into trees by KaTeX, which is loaded
 * with the first of them. What KaTeX cannot read stays as it was written.
 *
 * @typedef {import("./tree.js").Tree} Tree
 */

const BODY = String.raw`((?:[^\n]|\n(?![ \t]*(?:\n|$))){1,4000}?)`; // no empty line
const APART = [new RegExp(String.raw`^\$\$${BODY}\$\$`), new RegExp(String.raw`^\\\[${BODY}\\\]`)];
const WITHIN = [
  new RegExp(String.raw`^\\\(${BODY}\\\)`),
  // As pandoc has it: no space inside of the dollars, no digit after them, so that prices are none.
  /^\$(?![\s$])((?:\\[^\n]|[^\\$\n]){1,1000}?)(?<!\s)\$(?!\d)/,
];
const BLOCK = [...APART.map(({ source }) => new RegExp(`${source.replace("^", "^ {0,3}")}[ \\t]*(?:\\n+|$)`))];
/** One that has begun, at the end of a text that still grows. */
const BEGUN = new RegExp(String.raw`^ {0,3}(?:\$\$|\\\[)(?:[^\n]|\n(?![ \t]*(?:\n|$)))*\n?$`);
const MATHEMATICAL = /[\\^_{}=<>+*/|()]|^\S+$/;
const MOST_KEPT = 300;
const MOST_NODES = 4000; // of one formula
const DEEPEST = 120;

/** The extension of marked's lexer for this text, or nothing when there cannot be a formula in it. @param {string} text */
export function extension(text) {
  if (!/\$|\\[([]/.test(text)) return {};
  const masked = (/** @type {string} */ found) => found.replace(/[^\n]/g, "a");
  return {
    extensions: {
      block: [block],
      startBlock: [(/** @type {string} */ rest) => rest.search(/\n {0,3}(?:\$\$|\\\[)/) + 1 || undefined],
      inline: [inline],
      startInline: [(/** @type {string} */ rest) => rest.search(/\$|\\[([]/)],
      childTokens: {},
      renderers: {},
    },
    // What is between two formulas is no emphasis because of the underscores in them.
    hooks: { emStrongMask: (/** @type {string} */ line) => line.replace(/\$[^$\n]+\$|\\\(.+?\\\)/g, masked) },
  };
}

/** @param {string} text */
function block(text) {
  for (const rule of BLOCK) {
    const found = rule.exec(text);
    if (found?.[1].trim()) return { type: "math", raw: found[0], text: found[1], display: true };
  }
  const begun = BEGUN.exec(text);
  return begun ? { type: "plain", raw: begun[0], text: begun[0] } : undefined;
}

/** @param {string} text */
function inline(text) {
  const found = match(APART, text);
  if (found?.[1].trim()) return { type: "math", raw: found[0], text: found[1], display: true };
  const within = match(WITHIN, text);
  if (!within?.[1].trim() || (text[0] === "$" && !MATHEMATICAL.test(within[1]))) return undefined;
  return { type: "math", raw: within[0], text: within[1], display: false };
}

/** Return a text with its formulas as they are between their delimiters, for places that show plain text. @param {string} text */
export function withoutDelimiters(text) {
  let [plain, rest] = ["", text];
  for (let at; (at = rest.search(/\$|\\[([]/)) >= 0; ) {
    const found = inline(rest.slice(at));
    plain += rest.slice(0, at) + (found ? found.text.trim() : rest[at]);
    rest = rest.slice(at + (found?.raw.length ?? 1));
  }
  return plain + rest;
}

/** @param {RegExp[]} rules @param {string} text */
function match(rules, text) {
  for (const rule of rules) {
    const found = rule.exec(text);
    if (found) return found;
  }
  return null;
}

/** @type {any} */
let katex = null;
/** Whether a formula was asked for that needs KaTeX. */
let wanted = false;
/** @type {Map<string, Tree[] | null>} */
const known = new Map();

/** Whether a formula needs KaTeX, which is not loaded yet. */
export function needed() {
  return wanted;
}

/** Load KaTeX. Return whether it is there. */
export async function load() {
  wanted = false;
  try {
    await import("../vendor/katex/katex.js");
    katex = /** @type {any} */ (globalThis).katex;
  } catch {
    return false; // the network may be away
  }
  return true;
}

/** Return a formula as trees; null where KaTeX is not loaded or cannot read it. @param {string} text @param {boolean} display */
export function formula(text, display) {
  wanted ||= !katex;
  const key = `${display}${text}`;
  const found = known.get(key);
  if (found !== undefined || !katex) return found ?? null;
  const trees = render(text, display);
  if (known.size >= MOST_KEPT) known.clear();
  known.set(key, trees);
  return trees;
}

/** @param {string} text @param {boolean} display @returns {Tree[] | null} */
function render(text, display) {
  const place = new Recorder("span");
  /** @type {any} */ (globalThis).document = recording;
  try {
    katex.render(text, place, { displayMode: display, strict: "ignore", trust: false, maxExpand: 500, maxSize: 20 });
    return size(place.children) <= MOST_NODES ? place.children : null;
  } catch {
    return null; // no formula, or one that is too deep
  } finally {
    Reflect.deleteProperty(globalThis, "document");
  }
}

/** @param {Tree[]} trees @returns {number} */
function size(trees, depth = 0) {
  if (depth > DEEPEST) throw new Error("too deep");
  return trees.reduce((sum, tree) => sum + 1 + (typeof tree === "object" && "children" in tree ? size(tree.children, depth + 1) : 0), 0);
}

/** Takes note of what KaTeX does to an element. */
class Recorder {
  /** @type {Record<string, string>} */ attributes = {};
  /** @type {Record<string, string>} */ style = {};
  /** @type {Tree[]} */ children = [];

  /** @param {string} tag @param {string} [space] */
  constructor(tag, space) {
    this.tag = tag;
    this.space = space;
  }

  set className(/** @type {string} */ name) {
    if (name) this.attributes.class = name;
  }

  set textContent(/** @type {string} */ text) {
    this.children = text ? [text] : [];
  }

  setAttribute(/** @type {string} */ name, /** @type {unknown} */ value) {
    this.attributes[name] = String(value);
  }

  appendChild(/** @type {any} */ child) {
    if (child instanceof Recorder && child.tag === "") this.children.push(...child.children);
    else if (child instanceof Recorder) {
      const { tag, space, attributes, style, children } = child;
      this.children.push({ tag, space, attributes, style, children });
    } else this.children.push(child);
    return child;
  }
}

const recording = {
  createElement: (/** @type {string} */ tag) => new Recorder(tag),
  createElementNS: (/** @type {string} */ space, /** @type {string} */ tag) => new Recorder(tag, space),
  createDocumentFragment: () => new Recorder(""),
  createTextNode: (/** @type {string} */ text) => text,
};
