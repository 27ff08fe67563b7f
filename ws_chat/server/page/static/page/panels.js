/** The two panels at the sides, and the tabs in one of them. On a narrow screen they lie over the page. */
import { get } from "./dom.js";

const narrow = matchMedia("(max-width: 760px)");
const middling = matchMedia("(max-width: 1100px)");

/** @param {{ streams: { show: () => void }, frames: { show: () => void } }} views */
export function panels(views) {
  const shown = () => {
    views.streams.show();
    views.frames.show();
  };
  const lists = panel("list", get("open-list"), () => narrow.matches);
  const wire = panel("wire", get("open-wire"), () => middling.matches, shown);
  get("list").addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("a, .new")) lists.close();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    // Before it stops an answer, Escape closes what lies over it.
    if (lists.covers() ? lists.close() : wire.covers() && wire.close()) event.preventDefault();
  }, { capture: true });
  tabs(shown);
}

/**
 * @param {string} id
 * @param {HTMLElement} opener
 * @param {() => boolean} covering Whether it lies over the page now.
 */
function panel(id, opener, covering, shown = () => {}) {
  const box = get(id);
  const covers = () => box.dataset.open === "true" && covering();
  const set = (/** @type {boolean} */ open) => {
    box.dataset.open = String(open);
    if (id === "wire") box.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    document.querySelector("main")?.toggleAttribute("inert", covers());
    if (open) {
      /** @type {HTMLElement | null} */ (box.querySelector(covering() ? ".closes" : "[role=tab][aria-selected=true]"))?.focus();
      shown();
    }
  };
  const close = () => {
    if (box.dataset.open !== "true") return false;
    set(false);
    opener.focus();
    return true;
  };
  opener.addEventListener("click", () => (box.dataset.open === "true" ? close() : set(true)));
  box.querySelector(".closes")?.addEventListener("click", close);
  document.addEventListener("click", ({ target }) => {
    // What it lies over is inert, so that a click there is one on nothing.
    if (covers() && target instanceof Element && !box.contains(target) && !opener.contains(target)) close();
  });
  for (const query of [narrow, middling]) {
    query.addEventListener("change", () => document.querySelector("main")?.toggleAttribute("inert", covers()));
  }
  return { close, covers };
}

/** Tabs as the ARIA Authoring Practices have them: arrows choose. @param {() => void} shown */
function tabs(shown) {
  const all = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[role=tab]")]);
  const choose = (/** @type {HTMLElement} */ chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      get(tab.getAttribute("aria-controls") ?? "").hidden = tab !== chosen;
    }
    shown();
  };
  for (const tab of all) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", ({ key }) => {
      if (key !== "ArrowLeft" && key !== "ArrowRight") return;
      const next = all[(all.indexOf(tab) + (key === "ArrowRight" ? 1 : all.length - 1)) % all.length];
      choose(next);
      next.focus();
    });
  }
}
