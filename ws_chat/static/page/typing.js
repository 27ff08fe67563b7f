/**
 * An answer that types. Of a growing text only the last block can still change, so that blocks are read and made once,
 * when the next one begins; the open one is made again at most once per frame, and less often when that takes long.
 */
import { CodeBlock } from "./code.js";
import { alike, settle } from "./dom.js";
import { block, languageOf, read } from "./markdown.js";

const SHARE = 4; // one part of the time in so many may go into the open block

export class Typing {
  /** How much of the text was taken. */ #taken = 0;
  /** What is not finished, with LF for line breaks. */ #rest = "";
  #due = 0;
  #links = Object.create(null);
  /** @type {Element | null} */ #open = null;
  /** @type {CodeBlock | null} */ #code = null;
  #place;
  #finished;

  /**
   * @param {Element} place Where the blocks go.
   * @param {(block: Element) => void} finished Called with each block that will not change any more.
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
    const fresh = text.slice(this.#taken, !ended && text.endsWith("\r") ? -1 : undefined); // CRLF may come in two
    this.#taken += fresh.length;
    this.#rest += fresh.replace(/\r\n?/g, "\n");
    const tokens = read(this.#rest, this.#links);
    const last = ended ? tokens.length : tokens.findLastIndex((token) => token.type !== "space");
    for (const token of tokens.slice(0, Math.max(0, last))) {
      this.#draw(token, true);
      this.#rest = this.#rest.slice(token.raw.length);
    }
    if (!ended && tokens[last]) this.#draw(tokens[last], false);
    this.#due = performance.now() + (performance.now() - begun) * SHARE;
    return false;
  }

  /** @param {any} token @param {boolean} finished */
  #draw(token, finished) {
    const language = languageOf(token);
    if (token.type !== "code") {
      this.#code = null;
      const fresh = block(token);
      if (this.#open && fresh && alike(this.#open, fresh)) settle(this.#open, fresh);
      else this.#replace(fresh);
    } else {
      if (this.#code?.language !== language) {
        this.#code = new CodeBlock(language);
        this.#replace(this.#code.element);
      }
      this.#code.show(token.text, finished);
    }
    if (!finished) return;
    if (this.#open) this.#finished(this.#open);
    this.#open = this.#code = null;
  }

  /** @param {Element | null} fresh */
  #replace(fresh) {
    if (this.#open && fresh) this.#open.replaceWith(fresh);
    else if (fresh) this.#place.append(fresh);
    else this.#open?.remove();
    this.#open = fresh;
  }
}
