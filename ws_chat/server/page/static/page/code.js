/** A block of code that may grow, coloured in the background when its language is known. */
import { background } from "./background.js";
import { copy, make } from "./dom.js";
import { grow } from "./tree.js";

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
const MOST_CHARACTERS = 50_000;
const SHARE = 15; // of the time, one part in so many may go into colouring a block that still grows

export class CodeBlock {
  #code = make("code");
  #shown = "";
  #coloured = 0;
  #due = 0;
  #busy = false;
  #ended = false;
  #name;

  /** @param {string} language As the fence names it. */
  constructor(language) {
    const name = language.toLowerCase();
    this.language = language;
    this.#name = FILES.has(name) ? name : (OTHER_NAMES.get(name) ?? "");
    const button = make("button", { type: "button", class: "quiet", click: () => copy(this.#shown, button) }, "Copy");
    // What scrolls has to be reached by the keyboard.
    const label = language ? `Code, ${language}` : "Code";
    const pre = make("pre", { tabindex: "0", role: "group", "aria-label": label, dir: "ltr" }, this.#code);
    this.element = make("figure", { class: "code" }, make("figcaption", {}, make("span", {}, language), button), pre);
  }

  /** Show `text`, which mostly goes on from what was shown. @param {string} text @param {boolean} ended */
  show(text, ended) {
    if (text.startsWith(this.#shown)) this.#code.append(text.slice(this.#shown.length));
    else {
      this.#code.textContent = text;
      this.#coloured = 0;
    }
    this.#shown = text;
    this.#ended ||= ended;
    void this.#colour();
  }

  async #colour() {
    const text = this.#shown;
    if (this.#busy || !this.#name || text.length > MOST_CHARACTERS || text.length === this.#coloured) return;
    if (!this.#ended && performance.now() < this.#due) return; // the next piece of the text asks again
    this.#busy = true;
    const begun = performance.now();
    const trees = await background.run("colour", { text, language: this.#name });
    this.#busy = false;
    if (!trees) this.#name = ""; // beyond the time limit once is beyond it again
    else if (this.#shown.startsWith(text)) {
      this.#code.replaceChildren(...trees.map(grow), this.#shown.slice(text.length));
      this.#coloured = text.length;
    }
    this.#due = performance.now() + (performance.now() - begun) * SHARE;
    if (this.#ended) void this.#colour();
  }
}
