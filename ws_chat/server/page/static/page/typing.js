/**
 * An answer that types. Of a growing text only the end can still change, so that blocks are read and made once, when
 * another has begun; the open ones are made again at most once per frame, and less often when that takes long.
 */
import { CodeBlock } from "./code.js";
import { alike, settle } from "./dom.js";
import { block, languageOf, read } from "./markdown.js";

const SHARE = 4; // one part of the time in so many may go into the open blocks

export class Typing {
  /** How much of the text was taken. */ #taken = 0;
  /** What is not finished, with LF for line breaks. */ #rest = "";
  /** What the rest is shown as. @type {{ element: HTMLElement, code: CodeBlock | null }[]} */ #open = [];
  /** The link definitions of what is finished. */ #links = Object.create(null);
  #defines = false;
  #due = 0;
  #place;
  #finished;

  /**
   * @param {Element} place Where the blocks go.
   * @param {(block: HTMLElement) => void} finished Called with each block that will not change any more.
   */
  constructor(place, finished) {
    this.#place = place;
    this.#finished = finished;
  }

  /**
   * Show a text, which goes on from what was shown. Return whether there is more to show later.
   *
   * @param {string} text
   * @param {boolean} ended
   */
  show(text, ended) {
    const begun = performance.now();
    if (begun < this.#due && !ended) return true;
    if (this.#taken === text.length && !(ended && this.#rest)) return false;
    const fresh = text.slice(this.#taken, !ended && text.endsWith("\r") ? -1 : undefined); // CRLF may come in two
    this.#taken += fresh.length;
    this.#rest += lines(fresh);
    this.#draw(ended);
    if (ended && this.#defines) this.#drawAgain(text);
    this.#due = performance.now() + (performance.now() - begun) * SHARE;
    return false;
  }

  /** @param {boolean} ended */
  #draw(ended) {
    const links = { __proto__: null, ...this.#links };
    const tokens = read(this.#rest, links);
    this.#defines ||= Object.keys(links).length > 0;
    const finished = ended ? tokens.length : open(tokens);
    let place = 0;
    tokens.forEach((token, at) => {
      if (this.#show(token, place, at < finished)) place += 1;
      if (at >= finished) return;
      this.#rest = this.#rest.slice(token.raw.length);
      if (token.type === "def") this.#links[token.tag] ??= links[token.tag];
    });
    for (const { element } of this.#open.splice(place)) element.remove();
    const done = tokens.slice(0, finished).filter((token) => token.type !== "space" && token.type !== "def").length;
    for (const { element } of this.#open.splice(0, done)) this.#finished(element);
  }

  /** Show a token in place of the open element that was there. Return false for one that shows nothing. */
  #show(/** @type {any} */ token, /** @type {number} */ place, /** @type {boolean} */ finished) {
    const old = this.#open[place];
    if (token.type === "code") {
      const language = languageOf(token);
      const known = old?.code;
      const code = known && known.language === language ? known : new CodeBlock(language);
      code.show(token.text, finished);
      this.#put(place, code.element, code);
      return true;
    }
    const fresh = block(token);
    if (!fresh) return false;
    if (old && !old.code && alike(old.element, fresh)) settle(old.element, fresh);
    else this.#put(place, fresh, null);
    return true;
  }

  /** @param {number} place @param {HTMLElement} element @param {CodeBlock | null} code */
  #put(place, element, code) {
    const old = this.#open[place]?.element;
    if (!old) this.#place.append(element);
    else if (old !== element) old.replaceWith(element);
    this.#open[place] = { element, code };
  }

  /** A link may be defined after it was used, mostly at the end: then everything is read once more. */
  #drawAgain(/** @type {string} */ text) {
    this.#defines = false;
    this.#place.replaceChildren(...read(lines(text), Object.create(null)).flatMap((token) => block(token) ?? []));
  }
}

/** Return how many tokens are finished. The line that is not whole may yet turn out to belong to the block before. */
function open(/** @type {any[]} */ tokens) {
  const shown = (/** @type {any} */ token) => token.type !== "space";
  const last = tokens.findLastIndex(shown);
  if (tokens[last]?.raw.includes("\n") || tokens[last + 1]) return Math.max(0, last);
  return Math.max(0, tokens.slice(0, Math.max(0, last)).findLastIndex(shown));
}

/** @param {string} text */
function lines(text) {
  return text.replace(/\r\n?/g, "\n");
}
