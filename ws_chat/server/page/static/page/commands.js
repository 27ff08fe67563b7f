/**
 * A frame that was sent, as a line for a terminal. A key is in it only when one is given.
 *
 * @typedef {{ socketUrl: string, streamUrl: string, needsKey: boolean, key?: string }} Place
 */

/** @param {string} text The frame. @param {Place} place */
export function wscat(text, place) {
  return ["wscat", "-c", quoted(place.socketUrl), ...header(place), "-x", quoted(text), "-w", "60"].join(" ");
}

/** Return the same request over SSE, or null for a frame that has none. @param {string} text @param {Place} place */
export function curl(text, place) {
  const frame = JSON.parse(text);
  const url = `${place.streamUrl}/${frame.id}`;
  if (frame.type === "cancel") return ["curl", "-X", "DELETE", ...header(place), quoted(url)].join(" ");
  if (frame.type === "resume") {
    return ["curl", "-N", ...header(place), quoted(`${url}?format=frames&after=${frame.after ?? 0}`)].join(" ");
  }
  if (!frame.messages) return null;
  return ["curl", "-N", ...header(place), "-d", quoted(text), quoted(`${place.streamUrl}?format=frames`)].join(" ");
}

/** @param {Place} place */
function header({ needsKey, key }) {
  if (key) return ["-H", quoted(`Authorization: Bearer ${key}`)];
  return needsKey ? ["-H", '"Authorization: Bearer $WS_CHAT_KEY"'] : [];
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
