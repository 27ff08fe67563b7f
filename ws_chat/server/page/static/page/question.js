/** A question as it is drawn: Markdown, folded when it is long, with its images, and a form to edit it. */
import { button, make } from "./dom.js";
import * as images from "./images.js";
import { Typing } from "./typing.js";

const MOST_LINES = 8;
const LINE = 80; // characters

export class QuestionView {
  #text = make("div", { class: "text" });
  #fold = make("button", { type: "button", class: "quiet fold", hidden: true, "aria-expanded": "false" }, "Show all");
  #images = make("div", { class: "shown-images", hidden: true });
  #actions;
  #edited;
  #question;

  /** @param {import("./conversations.js").Turn} turn @param {(question: string) => void} edited */
  constructor({ question, images: shown }, edited) {
    this.#question = question;
    this.#edited = edited;
    this.edit = button("edit", "Edit question", () => this.#open());
    this.#actions = make("div", { class: "question-actions" }, this.edit);
    const bubble = make("div", { class: "bubble", dir: "auto" }, this.#images, this.#text, this.#fold);
    this.element = make("div", { class: "question" }, bubble, this.#actions);
    void this.#read(question);
    if (lines(question) > MOST_LINES) this.#foldIt();
    if (shown.length) void this.#show(shown);
    this.#text.hidden = !question.trim();
  }

  /** Show a question as it is until it is read. @param {string} question */
  async #read(question) {
    this.#text.append(make("p", { class: "plain", dir: "auto" }, question));
    const place = make("div");
    await new Typing(place, () => {}).show(question, true);
    this.#text.replaceChildren(...place.childNodes);
  }

  #foldIt() {
    this.#text.classList.add("folded");
    this.#fold.hidden = false;
    this.#fold.addEventListener("click", () => {
      const folded = this.#text.classList.toggle("folded");
      this.#fold.textContent = folded ? "Show all" : "Show less";
      this.#fold.setAttribute("aria-expanded", String(!folded));
    });
  }

  /** @param {string[]} ids */
  async #show(ids) {
    await images.load(ids);
    this.#images.hidden = false;
    this.#images.replaceChildren(...ids.map((id) => {
      const src = images.known(id);
      return src ? make("img", { src, alt: "Image of the question" }) : make("p", {}, "This image is not kept any more.");
    }));
  }

  #open() {
    const field = /** @type {HTMLTextAreaElement} */ (make("textarea", { "aria-label": "Edit question", dir: "auto", rows: "2" }));
    field.value = this.#question;
    const close = () => {
      form.remove();
      bubble.hidden = this.#actions.hidden = false;
      this.edit.focus();
    };
    const send = (/** @type {Event} */ event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      close();
      this.#edited(field.value);
    };
    const form = make("form", { class: "edit", submit: send }, field,
      make("div", { class: "row" },
        make("button", { type: "button", click: () => close() }, "Cancel"),
        make("button", { type: "submit", class: "primary" }, "Ask")));
    const bubble = /** @type {HTMLElement} */ (this.element.firstElementChild);
    bubble.hidden = this.#actions.hidden = true;
    this.element.append(form);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.preventDefault();
        close();
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
    });
    field.focus();
  }
}

/** @param {string} text */
function lines(text) {
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LINE)), 0);
}
