/**
 * Code, coloured by highlight.js: of what it finds only the tree is used, and made into elements here. It and each
 * language are loaded when they are needed first; until then, and in any other language, code is plain.
 */
import { copy, make } from "./dom.js";

const FILES = new Set(
  ("bash c cpp csharp css diff dockerfile go http ini java javascript json kotlin lua makefile markdown nginx php " +
    "python r ruby rust shell sql swift typescript xml yaml").split(" "),
);
const OTHER_NAMES = new Map(Object.entries({
  ...{ py: "python", python3: "python", js: "javascript", jsx: "javascript", mjs: "javascript", node: "javascript" },
  ...{ ts: "typescript", tsx: "typescript", sh: "bash", zsh: "bash", console: "shell", shellsession: "shell" },
  ...{ html: "xml", svg: "xml", yml: "yaml", "c++": "cpp", h: "c", hpp: "cpp", cs: "csharp", "c#": "csharp" },
  ...{ rs: "rust", rb: "ruby", kt: "kotlin", golang: "go", toml: "ini", make: "makefile", md: "markdown", jsonc: "json" },
  ...{ postgresql: "sql", sqlite: "sql", mysql: "sql", patch: "diff", docker: "dockerfile" },
}));
/** What is written inside of another language. @type {Record<string, string[]>} */
const INSIDE = { xml: ["javascript", "css"], markdown: ["xml"], shell: ["bash"], php: ["xml"] };
const MOST_CHARACTERS = 50_000;
const SHARE = 15; // of the time, one part in so many may go into colouring a block that still grows

/** A block of code that may grow. */
export class CodeBlock {
  #code = make("code");
  #shown = "";
  #coloured = 0;
  #due = 0;
  #name;

  /** @param {string} language As the fence names it. */
  constructor(language) {
    const name = language.toLowerCase();
    this.language = language;
    this.#name = FILES.has(name) ? name : (OTHER_NAMES.get(name) ?? "");
    const button = make("button", { type: "button", class: "quiet", click: () => copy(this.#shown, button) }, "Copy");
    // What scrolls has to be reached by the keyboard.
    const label = language ? `Code, ${language}` : "Code";
    const pre = make("pre", { tabindex: "0", role: "group", "aria-label": label }, this.#code);
    this.element = make("figure", { class: "code" }, make("figcaption", {}, make("span", {}, language), button), pre);
    if (this.#name) load(this.#name).then((loaded) => loaded && this.#colour());
  }

  /** Show `text`, which mostly goes on from what was shown. @param {string} text @param {boolean} ended */
  show(text, ended) {
    if (text.startsWith(this.#shown)) this.#code.append(text.slice(this.#shown.length));
    else this.#code.textContent = text;
    const changed = text !== this.#shown || this.#coloured !== text.length;
    this.#shown = text;
    if (changed && (ended || performance.now() >= this.#due)) this.#colour();
  }

  #colour() {
    const text = this.#shown;
    if (!hljs?.getLanguage(this.#name) || text.length > MOST_CHARACTERS) return;
    const begun = performance.now();
    const found = hljs.highlight(text, { language: this.#name, ignoreIllegals: true });
    this.#code.replaceChildren(...found._emitter.rootNode.children.map(element));
    this.#coloured = text.length;
    this.#due = performance.now() + (performance.now() - begun) * SHARE;
  }
}

/** @param {string | { scope?: string, children: any[] }} node @returns {Node} */
function element(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const scope = node.scope?.split(".", 1)[0] ?? "";
  return make("span", { class: /^[a-z_-]+$/.test(scope) ? `c-${scope}` : undefined }, ...node.children.map(element));
}

/** @type {any} */
let hljs = null;
/** @type {Map<string, Promise<boolean>>} */
const loading = new Map();

/** @param {string} name */
function load(name) {
  const known = loading.get(name);
  if (known) return known;
  const found = Promise.all([name, ...(INSIDE[name] ?? [])].map(register)).then(
    () => true,
    () => !loading.delete(name), // the network may be away: it is plain for now
  );
  loading.set(name, found);
  return found;
}

/** @param {string} name */
async function register(name) {
  hljs ??= (await import("../vendor/highlight/core.js")).default;
  const { default: grammar } = await import(`../vendor/highlight/languages/${name}.js`);
  hljs.registerLanguage(name, grammar);
}
