/** The service worker, with which the page loads without a network. */
import { trusted } from "./trusted.js";

/** What worker.js imports, which is not among what the page loaded. */
const WORKER = ["./worker.js", "./highlight.js", "./markdown.js", "./math.js", "../vendor/marked.js", "../vendor/highlight/core.js"];

/** Register it, where the browser has any: only https pages and localhost do. */
export async function install() {
  if (!("serviceWorker" in navigator)) return;
  const url = new URL("service-worker.js", document.baseURI).href;
  try {
    await navigator.serviceWorker.register(trusted(url));
    const { active } = await navigator.serviceWorker.ready;
    const loaded = performance.getEntriesByType("resource").map(({ name }) => name);
    const parts = WORKER.map((name) => new URL(name, import.meta.url).href);
    active?.postMessage([location.href.split(/[?#]/, 1)[0], ...loaded, ...parts]);
  } catch (error) {
    console.info(`The page will not load without a network: ${error}`); // the user forbids it, or a proxy lets no / through
  }
}
