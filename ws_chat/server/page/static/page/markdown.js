/**
 * Markdown as elements. marked reads it; what it found is made into elements here, one kind at a time. What is not
 * listed, HTML above all, stays the text that it is; images are links, so that reading an answer loads nothing.
 */
import { Lexer, getDefaults } from "../vendor/marked.js";
import { CodeBlock } from "./code.js";
import { make } from "./dom.js";

const DEEPEST = 24;
const MOST_CHARACTERS = 10_000; // without an empty line: more is no text, and may take long to read
/** @type {Record<string, string>} */
const ENTITIES = {
  ...{ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", hellip: "…", mdash: "—", ndash: "–" },
  ...{ larr: "←", rarr: "→", times: "×", deg: "°", copy: "©", euro: "€", le: "≤", ge: "≥", ne: "≠" },
};

/**
 * Read blocks. `links` holds the link definitions of what came before, and gets those of this text.
 *
 * @param {string} text
 * @param {Record<string, unknown>} links
 * @returns {any[]} marked's tokens; each has what it was read from in `raw`
 */
export function read(text, links) {
  const end = readable(text);
  const rest = end < text.length ? [plain(text.slice(end))] : [];
  try {
    const lexer = new Lexer({ ...getDefaults(), breaks: true }); // a line that a model breaks is broken
    /** @type {any} */ (lexer.tokens).links = links;
    return [...lexer.lex(text.slice(0, end)), ...rest];
  } catch {
    return [plain(text)]; // nested too deep for the stack
  }
}

/** Return where the first block begins that is too long to be read. @param {string} text */
function readable(text) {
  if (text.length <= MOST_CHARACTERS) return text.length;
  let at = 0;
  for (const run of text.split(/(?<=\n\n)/)) {
    if (run.length > MOST_CHARACTERS) return at;
    at += run.length;
  }
  return at;
}

/** @param {string} text */
function plain(text) {
  return { type: "plain", raw: text, text };
}

/** Make a block, or null for what shows nothing. @param {any} token @returns {HTMLElement | null} */
export function block(token, depth = 0) {
  if (depth > DEEPEST) return make("p", { class: "plain" }, token.raw);
  const deeper = (/** @type {any[]} */ tokens) => blocks(tokens, depth + 1);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return make(`h${Math.min(6, token.depth + 2)}`, {}, ...inlines(token.tokens)); // h2 is the question
    case "code": {
      const code = new CodeBlock(languageOf(token));
      code.show(token.text, true);
      return code.element;
    }
    case "hr":
      return make("hr");
    case "blockquote":
      return make("blockquote", {}, ...deeper(token.tokens));
    case "list": {
      const items = token.items.map((/** @type {any} */ item) => make("li", {}, ...deeper(item.tokens)));
      const start = token.ordered && token.start !== 1 ? token.start : undefined;
      return make(token.ordered ? "ol" : "ul", { start, class: token.loose ? "loose" : undefined }, ...items);
    }
    case "table":
      return table(token);
    case "paragraph":
      return make("p", {}, ...inlines(token.tokens));
    default:
      return make("p", { class: "plain" }, token.raw.trimEnd());
  }
}

/** Return the language that a fence names, or nothing. @param {any} token */
export function languageOf(token) {
  return (token.lang ?? "").trim().split(/\s/, 1)[0];
}

/** @param {any[]} tokens @returns {Node[]} */
function blocks(tokens, depth = 0) {
  return tokens.flatMap((token) => {
    if (token.type === "text") return token.tokens ? inlines(token.tokens, depth) : [document.createTextNode(token.text)];
    if (token.type === "checkbox") return inlines([token], depth);
    return block(token, depth) ?? [];
  });
}

/** @param {any} token */
function table(token) {
  const row = (/** @type {any[]} */ cells, /** @type {string} */ kind) =>
    make("tr", {}, ...cells.map((cell) => make(kind, { class: cell.align ?? undefined }, ...inlines(cell.tokens))));
  const body = token.rows.map((/** @type {any[]} */ cells) => row(cells, "td"));
  const whole = make("table", {}, make("thead", {}, row(token.header, "th")), make("tbody", {}, ...body));
  return make("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}

/** @param {any[]} tokens @returns {Node[]} */
function inlines(tokens = [], depth = 0) {
  return tokens.map((token) => inline(token, depth));
}

/** @param {any} token @param {number} depth @returns {Node} */
function inline(token, depth) {
  if (depth > DEEPEST) return document.createTextNode(token.raw);
  const inner = () => inlines(token.tokens, depth + 1);
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return make(token.type, {}, ...inner());
    case "codespan":
      return make("code", {}, token.text);
    case "br":
      return make("br");
    case "link":
      return link(token.href, ...inner());
    case "image":
      return link(token.href, `Image: ${token.text || token.href}`);
    case "checkbox":
      return make("input", { type: "checkbox", disabled: true, checked: token.checked, "aria-label": "Task" });
    case "escape":
      return document.createTextNode(token.text);
    case "text":
      return token.tokens ? make("span", {}, ...inner()) : document.createTextNode(entities(token.text));
    default: // HTML. Tables have no other way to break a line.
      return /^<br ?\/?>$/i.test(token.raw) ? make("br") : document.createTextNode(token.raw);
  }
}

/** @param {string} href @param {(Node | string)[]} children */
function link(href, ...children) {
  // javascript: and the like stay text; relative ones would lead to this server, which no answer knows.
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return make("span", {}, ...children);
  return make("a", { href, title: href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** @param {string} text */
function entities(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{2,8}));/gi, (whole, decimal, hex, name) => {
    const number = decimal ? Number(decimal) : parseInt(hex, 16);
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
    return number > 0 && number <= 0x10ffff ? String.fromCodePoint(number) : whole;
  });
}
