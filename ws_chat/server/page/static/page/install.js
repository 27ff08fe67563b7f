/** The service worker, with which the page loads without a network. */
import { trusted } from "./trusted.js";

/** Register it, where the browser has any: only https pages and localhost do. */
export async function install() {
  if (!("serviceWorker" in navigator)) return;
  const url = new URL("service-worker.js", document.baseURI).href;
  try {
    await navigator.serviceWorker.register(trusted(url));
    const { active } = await navigator.serviceWorker.ready;
    const loaded = performance.getEntriesByType("resource").map(({ name }) => name);
    active?.postMessage([location.href.split(/[?#]/, 1)[0], ...loaded]);
  } catch (error) {
    console.info(`The page will not load without a network: ${error}`); // the user forbids it, or a proxy lets no / through
  }
}
