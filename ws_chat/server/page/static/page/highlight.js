/**
 * Code, coloured by highlight.js, in the worker: of what it finds only the tree is used. It and each language are loaded
 * when they are needed first.
 *
 * @typedef {import("./tree.js").Tree} Tree
 */
import hljs from "../vendor/highlight/core.js";

/** What is written inside of another language. @type {Record<string, string[]>} */
const INSIDE = { xml: ["javascript", "css"], markdown: ["xml"], shell: ["bash"], php: ["xml"] };
/** @type {Map<string, Promise<void>>} */
const loading = new Map();

/**
 * Return the trees of a text in one of the languages in ../vendor/highlight/languages.
 *
 * @param {{ text: string, language: string }} given
 * @param {<Result>(loading: Promise<Result>) => Promise<Result>} loads Awaits what is loaded, which may take long.
 */
export async function colour({ text, language }, loads) {
  const names = [language, ...(INSIDE[language] ?? [])];
  if (!names.every((name) => hljs.getLanguage(name))) await loads(Promise.all(names.map(load)));
  const found = hljs.highlight(text, { language, ignoreIllegals: true });
  return found._emitter.rootNode.children.map(tree);
}

/** @param {string | { scope?: string, children: any[] }} node @returns {Tree} */
function tree(node) {
  if (typeof node === "string") return node;
  const scope = node.scope?.split(".", 1)[0] ?? "";
  const name = /^[a-z_-]+$/.test(scope) ? `c-${scope}` : undefined;
  return { tag: "span", attributes: { class: name }, children: node.children.map(tree) };
}

/** @param {string} name */
function load(name) {
  const known = loading.get(name);
  if (known) return known;
  const loaded = import(`../vendor/highlight/languages/${name}.js`).then(({ default: grammar }) => {
    hljs.registerLanguage(name, grammar);
  });
  loaded.catch(() => loading.delete(name)); // the network may be away
  loading.set(name, loaded);
  return loaded;
}
