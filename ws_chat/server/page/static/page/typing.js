/**
 * An answer that types. Of a growing text only the end can still change, so that blocks are read and made once, when
 * another has begun; the open ones are made again at most once per frame, and less often when that takes long. The text
 * is read in the background, piece by piece; from a piece on that takes too long it is shown as it is.
 */
import { background } from "./background.js";
import { CodeBlock } from "./code.js";
import { alike, make, settle } from "./dom.js";
import { grow } from "./tree.js";

/** @typedef {import("./markdown.js").Block} Block */

const SHARE = 4; // one part of the time in so many may go into the open blocks
const PIECE = 4000; // characters that are read at once
const LONGEST = 8; // milliseconds without a picture

export class Typing {
  #text = "";
  #ended = false;
  /** How much of the text was taken. */ #taken = 0;
  /** What is not finished, with LF for line breaks. */ #rest = "";
  /** What the rest is shown as. @type {{ element: HTMLElement, code: CodeBlock | null }[]} */ #open = [];
  /** The link definitions of what is finished. @type {Record<string, any>} */ #links = {};
  #defines = false;
  /** Shows the text from where it could not be read. @type {HTMLElement | null} */ #plain = null;
  /** @type {Promise<void> | null} */ #reading = null;
  #place;
  #finished;
  #background;

  /**
   * @param {Element} place Where the blocks go.
   * @param {(block: HTMLElement) => void} finished Called with each block that will not change any more.
   */
  constructor(place, finished, reader = background) {
    this.#place = place;
    this.#finished = finished;
    this.#background = reader;
  }

  /**
   * Show a text, which goes on from what was shown. Return when all of it is shown that was given until then.
   *
   * @param {string} text
   * @param {boolean} ended
   * @returns {Promise<void>}
   */
  show(text, ended) {
    this.#text = text;
    this.#ended = ended;
    this.#reading ??= this.#read().finally(() => (this.#reading = null));
    return this.#reading;
  }

  async #read() {
    let took = 0;
    while (!this.#plain) {
      const piece = this.#next();
      const ended = this.#ended && this.#taken + piece.length === this.#text.length;
      if (!piece && !(ended && this.#rest)) break;
      this.#taken += piece.length;
      const fresh = lines(piece);
      this.#rest += fresh;
      const found = await this.#background.run("read", { text: this.#rest, links: this.#links, ended });
      const begun = performance.now();
      if (found) this.#draw(found);
      else this.#giveUp(fresh);
      took += performance.now() - begun;
      if (this.#taken < this.#text.length && took < LONGEST) continue;
      if (!this.#ended) await new Promise((resolve) => setTimeout(resolve, took * SHARE));
      await new Promise(requestAnimationFrame);
      took = 0;
    }
    if (this.#plain) this.#goOn(this.#plain);
    else if (this.#ended && this.#defines) await this.#drawAgain();
  }

  #next() {
    const piece = this.#text.slice(this.#taken, this.#taken + PIECE);
    const last = this.#ended && this.#taken + piece.length === this.#text.length;
    return piece.endsWith("\r") && !last ? piece.slice(0, -1) : piece; // CRLF may come in two
  }

  /** @param {{ blocks: Block[], finished: number, links: Record<string, any>, defines: boolean }} found */
  #draw({ blocks, finished, links, defines }) {
    this.#links = links;
    this.#defines ||= defines;
    let place = 0;
    let done = 0;
    blocks.forEach(({ length, tree }, at) => {
      if (at < finished) this.#rest = this.#rest.slice(length);
      if (!tree) return;
      this.#show(tree, place, at < finished);
      place += 1;
      if (at < finished) done = place;
    });
    for (const { element } of this.#open.splice(place)) element.remove();
    for (const { element } of this.#open.splice(0, done)) this.#finished(element);
  }

  /** Show a tree in place of the open element that was there. */
  #show(/** @type {any} */ tree, /** @type {number} */ place, /** @type {boolean} */ finished) {
    const old = this.#open[place];
    if ("code" in tree) {
      const known = old?.code;
      const code = known?.language === tree.language && known ? known : new CodeBlock(tree.language);
      code.show(tree.code, finished);
      this.#put(place, code.element, code);
      return;
    }
    const fresh = /** @type {HTMLElement} */ (grow(tree));
    if (old && !old.code && alike(old.element, fresh)) settle(old.element, fresh);
    else this.#put(place, fresh, null);
  }

  /** @param {number} place @param {HTMLElement} element @param {CodeBlock | null} code */
  #put(place, element, code) {
    const old = this.#open[place]?.element;
    if (!old) this.#place.append(element);
    else if (old !== element) old.replaceWith(element);
    this.#open[place] = { element, code };
  }

  /** A link may be defined after it was used, mostly at the end: then everything is read once more. */
  async #drawAgain() {
    this.#defines = false;
    const found = await this.#background.run("read", { text: lines(this.#text), links: {}, ended: true });
    if (found) this.#place.replaceChildren(...found.blocks.flatMap((/** @type {Block} */ { tree }) => (tree ? [grow(tree)] : [])));
  }

  /** Show this piece, and all that follows, as it is. @param {string} piece */
  #giveUp(piece) {
    this.#rest = piece;
    for (const { element } of this.#open.splice(0)) this.#finished(element);
    this.#plain = make("p", { class: "plain" }, piece);
    this.#place.append(this.#plain);
  }

  /** @param {HTMLElement} plain */
  #goOn(plain) {
    plain.append(lines(this.#text.slice(this.#taken)));
    this.#taken = this.#text.length;
    if (this.#ended && this.#rest) this.#finished(plain);
    if (this.#ended) this.#rest = "";
  }
}

/** @param {string} text */
function lines(text) {
  return text.replace(/\r\n?/g, "\n");
}
