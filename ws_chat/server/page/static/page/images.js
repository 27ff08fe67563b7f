/**
 * Images of questions. They are too large for localStorage, so that IndexedDB keeps them, by an id that the turn has. What
 * is attached is made small enough first: models look at 1568 pixels and no more.
 */
import { OURS } from "./storage.js";

const LONGEST_SIDE = 1568; // pixels
const LARGE = 700_000; // characters of a data URL, above which an image is written as JPEG
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/** @type {Map<string, string>} */
const cache = new Map();

/** Return an image's data URL if it was loaded. @param {string} id */
export function known(id) {
  return cache.get(id);
}

/** Load images that are kept. @param {string[]} ids */
export async function load(ids) {
  await Promise.all(ids.filter((id) => !cache.has(id)).map(async (id) => {
    const url = await stored("readonly", (store) => store.get(id));
    if (typeof url === "string") cache.set(id, url);
  }));
}

/** Name an image, for as long as the page lasts; return its id. @param {string} url A data URL. */
export function hold(url) {
  const id = Math.random().toString(36).slice(2, 12);
  cache.set(id, url);
  return id;
}

/** Keep images that are part of a question now. @param {string[]} ids */
export function keep(ids) {
  for (const id of ids) {
    const url = cache.get(id);
    if (url) void stored("readwrite", (store) => store.put(url, id));
  }
}

/** Delete all images but those. @param {Set<string>} used */
export async function sweep(used) {
  const ids = /** @type {string[] | undefined} */ (await stored("readonly", (store) => store.getAllKeys()));
  for (const id of ids ?? []) if (!used.has(id)) void stored("readwrite", (store) => store.delete(id));
}

/** Whether a file is an image that models read. @param {File} file */
export function isImage(file) {
  return TYPES.includes(file.type);
}

/** Return a file as a data URL, made smaller if it is large. Throws for what is no image. @param {File} file */
export async function read(file) {
  const url = await dataUrl(file);
  const image = new Image();
  image.src = url;
  await image.decode();
  const scale = Math.min(1, LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight, 1));
  if (scale === 1 && url.length <= LARGE) return url;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.fillStyle = "white"; // JPEG knows no transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.85);
}

/** @param {Blob} blob @returns {Promise<string>} */
function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** @type {Promise<IDBDatabase> | null} */
let opening = null;

/**
 * Do one thing with the store; return its result, or nothing where the browser keeps none.
 *
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} act
 */
async function stored(mode, act) {
  try {
    opening ??= finished(() => {
      const request = indexedDB.open(`${OURS}images`, 1);
      request.onupgradeneeded = () => request.result.createObjectStore("images");
      return request;
    });
    const database = await opening;
    return await finished(() => act(database.transaction("images", mode).objectStore("images")));
  } catch {
    return undefined; // forbidden or full: the image lasts as long as the page
  }
}

/** @template Result @param {() => IDBRequest<Result>} begin @returns {Promise<Result>} */
function finished(begin) {
  return new Promise((resolve, reject) => {
    const request = begin();
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
