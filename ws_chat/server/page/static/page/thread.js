/** The open conversation. Draws at most once per frame, and only the turns that changed. */
import { path, versions } from "./conversations.js";
import { get, paced } from "./dom.js";
import { TurnView } from "./turn.js";
import { welcome } from "./welcome.js";

const NEAR = 80; // pixels from the end, within which the view goes along with what comes

export class Thread {
  /** @type {Map<string, TurnView>} */ #views = new Map();
  /** @type {Set<string>} */ #dirty = new Set();
  #shown = "";
  #follows = true;
  #scrollTop = 0;
  #box = get("thread");
  #turns = get("turns");
  #latest = get("latest");
  #draw = paced(() => this.#drawDirty());
  #conversations;
  #answers;

  /**
   * @param {import("./conversations.js").Conversations} conversations
   * @param {import("./answers.js").Answers} answers
   */
  constructor(conversations, answers) {
    this.#conversations = conversations;
    this.#answers = answers;
    conversations.addEventListener("opened", () => this.#open());
    conversations.addEventListener("turn", (event) => {
      const { conversation, turn } = /** @type {CustomEvent} */ (event).detail;
      if (conversation !== conversations.current) return;
      if (!this.#views.has(turn.id)) this.#open();
      this.#dirty.add(turn.id);
      this.#draw();
    });
    this.#box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#latest.addEventListener("click", () => this.toEnd());
    const follow = new ResizeObserver(() => {
      // So wide are its scroll bars, which the composer below leaves free too.
      document.body.style.setProperty("--scrollbars", `${this.#box.offsetWidth - this.#box.clientWidth}px`);
      if (this.#follows) this.toEnd();
    });
    for (const element of [this.#turns, this.#box]) follow.observe(element); // the box: the composer has grown
    this.#open();
  }

  /** Go to the end, and along with it from now on. */
  toEnd() {
    this.#follows = true;
    this.#latest.hidden = true;
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  #open() {
    const conversation = this.#conversations.current;
    const { id, title } = conversation;
    const turns = path(conversation);
    if (id !== this.#shown) this.#views.clear();
    const views = turns.map((turn) => this.#views.get(turn.id) ?? this.#view(turn));
    this.#views = new Map(turns.map((turn, place) => [turn.id, views[place]]));
    for (const turn of turns) this.#dirty.add(turn.id);
    const elements = views.map((view) => view.element);
    // What stays is not moved: that would lose its selection and its scroll position.
    for (const element of [...this.#turns.children]) if (!elements.includes(/** @type {any} */ (element))) element.remove();
    elements.forEach((element, place) => {
      const there = this.#turns.children[place];
      if (there !== element) this.#turns.insertBefore(element, there ?? null);
    });
    if (!turns.length) this.#turns.append(welcome((question) => this.#answers.ask(this.#conversations.current, question)));
    get("title").textContent = title;
    document.title = turns.length ? `${title} · ws_chat` : "ws_chat";
    if (id !== this.#shown) {
      this.#shown = id;
      this.#drawDirty();
      this.toEnd();
    } else this.#draw();
  }

  /** @param {import("./conversations.js").Turn} turn */
  #view(turn) {
    const done = () => get("question").focus();
    /** @type {TurnView} */
    const view = new TurnView(turn, {
      again: () => {
        this.#answers.again(this.#conversations.current, view.turn);
        done();
      },
      edit: (question) => {
        const { parent, images } = view.turn;
        this.#answers.ask(this.#conversations.current, question, { parent, images });
        done();
      },
      goOn: () => {
        this.#answers.goOn(this.#conversations.current, view.turn);
        done();
      },
      version: (step) => {
        const all = versions(this.#conversations.current, view.turn);
        const chosen = all[all.indexOf(view.turn) + step];
        if (chosen) this.#conversations.show(this.#conversations.current, chosen);
        this.#views.get(chosen?.id ?? "")?.focusVersion(step);
      },
    });
    return view;
  }

  #drawDirty() {
    const conversation = this.#conversations.current;
    const turns = path(conversation);
    const dirty = [...this.#dirty];
    this.#dirty.clear();
    for (const turn of turns.filter(({ id }) => dirty.includes(id))) {
      const all = versions(conversation, turn);
      const place = { last: turn === turns.at(-1), version: all.indexOf(turn) + 1, versions: all.length };
      this.#views.get(turn.id)?.draw(turn, place);
    }
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#box;
    // What has come meanwhile is below, too: only who scrolls up wants to stay there.
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.#follows = true;
    else if (scrollTop < this.#scrollTop) this.#follows = false;
    this.#scrollTop = scrollTop;
    this.#latest.hidden = this.#follows;
  }
}
