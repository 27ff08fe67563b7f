/** The scripts that this page starts besides its modules. Nothing else gets through: a text can never become a script. */

/** @param {string} url */
function check(url) {
  const ours = [new URL("./worker.js", import.meta.url).href, new URL("service-worker.js", document.baseURI).href];
  if (!ours.includes(url)) throw new TypeError(`${url} is no script of this page.`);
  return url;
}

const policy = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("scripts", { createScriptURL: check });

/** Return the URL of a script of the page in the type that the page's policy wants. @param {string} url @returns {any} */
export function trusted(url) {
  return policy ? policy.createScriptURL(url) : check(url);
}
