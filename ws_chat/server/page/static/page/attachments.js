/** Images that go with the next question: chosen, pasted or dropped. */
import { get, icon, make } from "./dom.js";
import * as images from "./images.js";

const ROOM = 0.9; // of what the server takes may be images
const MOST = 8;

export class Attachments {
  /** @type {string[]} */ ids = [];
  #place = get("attachments");
  #maxBytes;
  #notify;
  #changed;

  /** @param {{ maxBytes: number, notify: (message: string) => void, changed: () => void }} options */
  constructor({ maxBytes, notify, changed }) {
    this.#maxBytes = maxBytes;
    this.#notify = notify;
    this.#changed = changed;
    const chooser = /** @type {HTMLInputElement} */ (get("files"));
    get("attach").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", () => {
      void this.#add([...(chooser.files ?? [])]);
      chooser.value = ""; // the same file may be chosen again
    });
    get("question").addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return;
      event.preventDefault();
      void this.#add(files);
    });
    this.#acceptDrops(get("main"));
  }

  /** Return the images, which are gone from here then. */
  take() {
    const taken = this.ids;
    images.keep(taken);
    this.ids = [];
    this.#draw();
    return taken;
  }

  /** @param {HTMLElement} target */
  #acceptDrops(target) {
    const carriesFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    target.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      target.dataset.drop = "true";
    });
    target.addEventListener("dragleave", (event) => {
      if (event.target === target || !target.contains(/** @type {Node | null} */ (event.relatedTarget))) delete target.dataset.drop;
    });
    target.addEventListener("drop", (event) => {
      delete target.dataset.drop;
      if (!carriesFiles(event)) return;
      event.preventDefault();
      void this.#add([...(event.dataTransfer?.files ?? [])]);
    });
  }

  /** @param {File[]} files */
  async #add(files) {
    for (const file of files) {
      try {
        if (!images.isImage(file)) throw new Error("it is no PNG, JPEG, WebP or GIF image");
        const url = await images.read(file);
        const size = this.ids.reduce((sum, id) => sum + (images.known(id)?.length ?? 0), url.length);
        const most = this.#maxBytes * ROOM;
        if (size > most) throw new Error(`with it the message would be larger than this server takes (${megabytes(most)})`);
        if (this.ids.length >= MOST) throw new Error(`there are ${MOST} images already`);
        this.ids.push(images.hold(url));
      } catch (error) {
        this.#notify(`${file.name || "The image"} cannot be attached: ${error instanceof Error ? error.message : error}.`);
      }
    }
    this.#draw();
    get("question").focus();
  }

  #draw() {
    this.#place.hidden = !this.ids.length;
    this.#place.replaceChildren(...this.ids.map((id, place) => {
      const remove = () => {
        this.ids.splice(place, 1);
        this.#draw();
        get("question").focus();
      };
      const label = `Remove image ${place + 1}`;
      return make("li", {},
        make("img", { src: images.known(id), alt: `Image ${place + 1}` }),
        make("button", { type: "button", "aria-label": label, title: label, click: remove }, icon("close")));
    }));
    this.#changed();
  }
}

/** @param {number} bytes */
function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MB`;
}
