/**
 * The page without a network: what was loaded is kept, and used when the server cannot be reached. With a network nothing
 * is taken from here, so that the page is always the server's. Served at service-worker.js beside the page, because a
 * service worker may not control what is above its own path.
 */
const CACHE = "ws-chat-page";
const base = new URL("./", self.location.href).href;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

// The page tells what it loaded before there was a service worker.
self.addEventListener("message", (event) => {
  if (Array.isArray(event.data)) event.waitUntil(keep(event.data.filter(isPart)));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && isPart(event.request.url)) event.respondWith(answer(event.request));
});

/** Whether a URL is of the page or its files; the API's answers are never kept. @param {string} url */
function isPart(url) {
  const path = url.split(/[?#]/, 1)[0];
  return path === base || path.startsWith(`${base}static/`);
}

/** @param {string[]} urls */
async function keep(urls) {
  const cache = await caches.open(CACHE);
  await Promise.all(urls.map(async (url) => (await cache.match(url)) ?? cache.add(url)));
}

/** @param {Request} request */
async function answer(request) {
  try {
    const response = await fetch(request);
    const policy = response.headers.get("Content-Security-Policy") ?? "";
    if (!policy.includes("trusted-types scripts")) {
      void self.registration.unregister(); // another program has this address now, as happens on localhost
    } else if (response.ok) {
      const copy = response.clone();
      caches.open(CACHE).then((cache) => cache.put(request, copy)).catch(() => {}); // there is no room
    }
    return response;
  } catch (error) {
    const kept = await caches.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
