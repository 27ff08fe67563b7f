/**
 * Markdown as trees, in the worker. marked reads it; what it found is made into trees here, one kind at a time. What is not
 * listed, HTML above all, stays the text that it is; images are links, so that reading an answer loads nothing.
 *
 * @typedef {import("./tree.js").Tree} Tree
 * @typedef {{ length: number, tree: Tree | null }} Block `length`: of its text; `tree`: null for what shows nothing.
 */
import { Lexer, getDefaults } from "../vendor/marked.js";
import { extension, formula, load, needed } from "./math.js";

const DEEPEST = 24;
const MOST_CHARACTERS = 10_000; // without an empty line: more is no text, and may take long to read
const MOST_NODES = 20_000; // in one block: more would take the page long to show
/** @type {Record<string, string>} */
const ENTITIES = {
  ...{ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", hellip: "…", mdash: "—", ndash: "–" },
  ...{ larr: "←", rarr: "→", times: "×", deg: "°", copy: "©", euro: "€", le: "≤", ge: "≥", ne: "≠" },
};
let nodes = 0;

/**
 * Read blocks. `links` holds the link definitions of what came before. Of the blocks, the first `finished` will not change
 * when the text grows; `links` of the result are the definitions of those, and `defines` says whether there are any at all.
 *
 * @param {{ text: string, links: Record<string, any>, ended: boolean }} given
 * @param {<Result>(loading: Promise<Result>) => Promise<Result>} loads Awaits what is loaded, which may take long.
 * @returns {Promise<{ blocks: Block[], finished: number, links: Record<string, any>, defines: boolean }>}
 */
export async function read({ text, links: known, ended }, loads) {
  const links = Object.assign(Object.create(null), known);
  const tokens = lex(text, links);
  const finished = ended ? tokens.length : open(tokens);
  const kept = Object.assign(Object.create(null), known);
  for (const token of tokens.slice(0, finished)) if (token.type === "def") kept[token.tag] ??= links[token.tag];
  const made = () => tokens.map((token) => ({ length: token.raw.length, tree: topBlock(token) }));
  let blocks = made();
  if (needed() && (await loads(load()))) blocks = made(); // now with formulas
  return { blocks, finished, links: kept, defines: Object.keys(links).length > 0 };
}

/** Return marked's tokens; each has what it was read from in `raw`. @returns {any[]} */
function lex(/** @type {string} */ text, /** @type {Record<string, any>} */ links) {
  const end = readable(text);
  const rest = end < text.length ? [plain(text.slice(end))] : [];
  try {
    const lexer = new Lexer({ ...getDefaults(), breaks: true, .../** @type {any} */ (extension(text)) }); // a line that a model breaks is broken
    /** @type {any} */ (lexer.tokens).links = links;
    return [...lexer.lex(text.slice(0, end)), ...rest];
  } catch {
    return [plain(text)]; // nested too deep for the stack
  }
}

/** Return where the first block begins that is too long to be read. Code may be: it is not looked into. @param {string} text */
function readable(text) {
  if (text.length <= MOST_CHARACTERS) return text.length;
  let [at, begin, fence] = [0, 0, ""];
  for (const line of text.split(/(?<=\n)/)) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1] ?? "";
    if (fence ? mark.startsWith(fence) : mark) fence = fence ? "" : mark;
    at += line.length;
    if (fence || mark || line === "\n") begin = at;
    else if (at - begin > MOST_CHARACTERS) return begin;
  }
  return text.length;
}

/** @param {string} text */
function plain(text) {
  return { type: "plain", raw: text, text };
}

/** Return how many tokens are finished. The line that is not whole may yet turn out to belong to the block before. */
function open(/** @type {any[]} */ tokens) {
  const shown = (/** @type {any} */ token) => token.type !== "space";
  const last = tokens.findLastIndex(shown);
  if (tokens[last]?.raw.includes("\n") || tokens[last + 1]) return Math.max(0, last);
  return Math.max(0, tokens.slice(0, Math.max(0, last)).findLastIndex(shown));
}

/** @param {any} token */
function topBlock(token) {
  nodes = 0;
  try {
    return block(token);
  } catch (error) {
    if (error instanceof TooManyError) return node("p", { class: "plain" }, token.raw.trimEnd());
    throw error;
  }
}

class TooManyError extends Error {}

/** @param {string} tag @param {Record<string, any>} attributes @param {Tree[]} children @returns {Tree} */
function node(tag, attributes = {}, ...children) {
  count();
  return { tag, attributes, children };
}

function count() {
  if ((nodes += 1) > MOST_NODES) throw new TooManyError();
}

/** Make a block, or null for what shows nothing. @param {any} token @returns {Tree | null} */
function block(token, depth = 0) {
  if (depth > DEEPEST) return node("p", { class: "plain" }, token.raw);
  const deeper = (/** @type {any[]} */ tokens) => blocks(tokens, depth + 1);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return node(`h${Math.min(6, token.depth + 2)}`, { dir: "auto" }, ...inlines(token.tokens)); // h2 is the question
    case "code":
      return { code: token.text, language: languageOf(token) };
    case "hr":
      return node("hr");
    case "blockquote":
      return node("blockquote", { dir: "auto" }, ...deeper(token.tokens));
    case "list": {
      const items = token.items.map((/** @type {any} */ item) => node("li", {}, ...deeper(item.tokens)));
      const start = token.ordered && token.start !== 1 ? token.start : undefined;
      return node(token.ordered ? "ol" : "ul", { start, dir: "auto", class: token.loose ? "loose" : undefined }, ...items);
    }
    case "table":
      return table(token);
    case "paragraph":
      return node("p", { dir: "auto" }, ...inlines(token.tokens));
    case "math":
      return math(token);
    default:
      return node("p", { class: "plain", dir: "auto" }, token.raw.trimEnd());
  }
}

/** Return the language that a fence names, or nothing. @param {any} token */
function languageOf(token) {
  return (token.lang ?? "").trim().split(/\s/, 1)[0];
}

/** @param {any[]} tokens @returns {Tree[]} */
function blocks(tokens, depth = 0) {
  return tokens.flatMap((token) => {
    if (token.type === "text") return token.tokens ? inlines(token.tokens, depth) : [token.text];
    if (token.type === "checkbox") return inlines([token], depth);
    return block(token, depth) ?? [];
  });
}

/** @param {any} token */
function table(token) {
  const row = (/** @type {any[]} */ cells, /** @type {string} */ kind) =>
    node("tr", {}, ...cells.map((cell) => node(kind, { class: cell.align ?? undefined }, ...inlines(cell.tokens))));
  const body = token.rows.map((/** @type {any[]} */ cells) => row(cells, "td"));
  const whole = node("table", { dir: "auto" }, node("thead", {}, row(token.header, "th")), node("tbody", {}, ...body));
  return node("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}

/** @param {any[]} tokens @returns {Tree[]} */
function inlines(tokens = [], depth = 0) {
  return tokens.map((token) => inline(token, depth));
}

/** @param {any} token @param {number} depth @returns {Tree} */
function inline(token, depth) {
  count();
  if (depth > DEEPEST) return token.raw;
  const inner = () => inlines(token.tokens, depth + 1);
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return node(token.type, {}, ...inner());
    case "codespan":
      return node("code", {}, token.text);
    case "br":
      return node("br");
    case "link":
      return link(token.href, ...inner());
    case "image":
      return link(token.href, `Image: ${token.text || token.href}`);
    case "checkbox":
      return node("input", { type: "checkbox", disabled: true, checked: token.checked, "aria-label": "Task" });
    case "escape": // `\,` and `\;` are spaces of LaTeX that has no delimiters; Markdown gives neither a meaning to escape
      return /[,;]/.test(token.text) ? token.raw : token.text;
    case "math":
      return math(token);
    case "text":
      return token.tokens ? node("span", {}, ...inner()) : entities(token.text);
    default: // HTML. Tables have no other way to break a line.
      return /^<br ?\/?>$/i.test(token.raw) ? node("br") : token.raw;
  }
}

/** @param {{ raw: string, text: string, display: boolean }} token @returns {Tree} */
function math({ raw, text, display }) {
  count();
  return { math: raw.trim(), display, trees: formula(text, display) };
}

/** @param {string} href @param {Tree[]} children */
function link(href, ...children) {
  // javascript: and the like stay text; relative ones would lead to this server, which no answer knows.
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return node("span", {}, ...children);
  return node("a", { href, title: href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** @param {string} text */
function entities(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{2,8}));/gi, (whole, decimal, hex, name) => {
    const number = decimal ? Number(decimal) : parseInt(hex, 16);
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
    return number > 0 && number <= 0x10ffff ? String.fromCodePoint(number) : whole;
  });
}
