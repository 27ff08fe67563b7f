/** The API's documentation: openapi.json and asyncapi.json as a page, without any request to another server. */
import { make } from "./page/dom.js";

/** @typedef {Record<string, any>} Json */

const MOST_DEPTH = 4; // of types in types; what is deeper is in the JSON
const base = new URL(".", document.baseURI);
const main = /** @type {HTMLElement} */ (document.getElementById("api"));
const contents = /** @type {HTMLElement} */ (document.getElementById("contents"));

try {
  const [http, socket] = await Promise.all(["openapi.json", "asyncapi.json"].map(document_));
  /** @type {HTMLElement} */ (document.getElementById("version")).textContent = http.info.version;
  chapter("WebSocket", channels(socket));
  chapter("HTTP", operations(http));
  chapter("Schemas", schemas({ ...http.components.schemas, ...socket.components.schemas }));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (error) {
  main.append(make("p", { role: "alert" }, `The documents cannot be read: ${error instanceof Error ? error.message : error}`));
}

/** @param {string} name @returns {Promise<Json>} */
async function document_(name) {
  const response = await fetch(new URL(name, base));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response.json();
}

/** @param {string} title @param {{ id: string, name: string, element: HTMLElement }[]} sections */
function chapter(title, sections) {
  const links = sections.map(({ id, name }) => make("li", {}, make("a", { href: `#${id}` }, name)));
  contents.append(make("h2", {}, title), make("ul", {}, ...links));
  main.append(make("h2", {}, title), ...sections.map(({ element }) => element));
}

/** @param {string} id @param {string} name @param {(Node | string)[]} heading @param {(Node | string | null)[]} parts */
function section(id, name, heading, parts) {
  const shown = /** @type {(Node | string)[]} */ (parts.filter((part) => part !== null));
  return { id, name, element: make("section", { id }, make("h3", {}, ...heading), ...shown) };
}

/** @param {Json} document */
function operations(document) {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => {
      const { summary, description, operationId, parameters = [], requestBody, responses } = operation;
      const given = parameters.map((/** @type {Json} */ one) => follow(document, one));
      const body = requestBody && follow(document, requestBody);
      const name = `${method.toUpperCase()} ${path}`;
      return section(operationId, name, [make("span", { class: "method" }, method.toUpperCase()), make("code", {}, path)], [
        prose(summary),
        prose(description),
        given.length ? make("h4", {}, "Parameters") : null,
        given.length ? table(["Name", "In", "Type", ""], given.map(parameter)) : null,
        body ? make("h4", {}, "Body") : null,
        body ? prose(body.description) : null,
        body ? types(body.content) : null,
        body ? block(curl(method, path, body)) : null,
        make("h4", {}, "Responses"),
        table(["Status", "", "Type"], Object.entries(responses).map(([status, one]) => response(status, follow(document, one)))),
      ]);
    }),
  );
}

/** @param {Json} one */
function parameter(one) {
  return [[make("code", {}, one.name), required(one.required)], [one.in], type(one.schema), inline(one.description ?? "")];
}

/** @param {string} status @param {Json} one */
function response(status, one) {
  return [[make("code", {}, status)], inline(one.description ?? ""), one.content ? [types(one.content)] : []];
}

/** @param {Json} content By media type. */
function types(content) {
  const all = Object.entries(content).flatMap(([media, { schema, itemSchema }]) => [
    make("code", {}, media), " ", ...(schema ?? itemSchema ? type(schema ?? itemSchema) : []), " ",
  ]);
  return make("span", {}, ...all);
}

/** @param {string} method @param {string} path @param {Json} body */
function curl(method, path, body) {
  const example = Object.values(body.content).find((/** @type {Json} */ one) => one.example)?.example;
  const data = example ? ` -d '${JSON.stringify(example)}'` : "";
  return `curl -N${method === "post" ? "" : ` -X ${method.toUpperCase()}`}${data} ${new URL(path.slice(1), base).href}`;
}

/** @param {Json} document */
function channels(document) {
  return Object.entries(document.channels).map(([id, channel]) => {
    const all = Object.values(document.operations).filter((one) => one.channel.$ref === `#/channels/${id}`);
    const rows = (/** @type {string} */ action) => all.filter((one) => one.action === action).map((/** @type {Json} */ one) => [
      inline(one.summary ?? ""), messages(document, one.messages), messages(document, one.reply?.messages ?? []),
    ]);
    const sent = rows("receive"); // AsyncAPI tells it from the server's side
    const pushed = rows("send").map(([summary, what]) => [summary, what]);
    return section(`channel-${id}`, channel.address, [make("span", { class: "method" }, "WS"), make("code", {}, channel.address)], [
      prose(channel.description),
      make("h4", {}, "The client sends"),
      table(["", "Frame", "Answered by"], sent),
      pushed.length ? make("h4", {}, "The server sends by itself") : null,
      pushed.length ? table(["", "Frame"], pushed) : null,
    ]);
  });
}

/** @param {Json} document @param {Json[]} list */
function messages(document, list) {
  return list.flatMap((one, place) => {
    const message = follow(document, follow(document, one));
    return [place ? ", " : "", ...(message.payload ? type(message.payload) : [message.name ?? ""])];
  });
}

/** @param {Json} all By name. */
function schemas(all) {
  return Object.entries(all).map(([name, schema]) => {
    const needed = new Set(schema.required ?? []);
    const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => [
      [make("code", {}, field), required(needed.has(field))], type(one), inline(one.description ?? ""),
    ]);
    return section(`schema-${name}`, name, [make("code", {}, name)], [
      prose(schema.description),
      rows.length ? table(["Field", "Type", ""], rows) : make("p", {}, ...type(schema)),
    ]);
  });
}

/** Return what a schema allows, in words; a named one is a link. @param {Json} schema @returns {(Node | string)[]} */
function type(schema, depth = 0) {
  const { $ref, anyOf, oneOf, allOf, items, additionalProperties: values } = schema;
  const many = anyOf ?? oneOf ?? allOf;
  if ($ref) return [make("a", { href: `#schema-${last($ref)}` }, last($ref))];
  if ("const" in schema) return [make("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return joined(schema.enum.map((/** @type {unknown} */ one) => [make("code", {}, JSON.stringify(one))]));
  if (depth > MOST_DEPTH) return ["…"];
  if (many) return joined(many.map((/** @type {Json} */ one) => type(one, depth + 1)));
  if (items) return ["list of ", ...type(items, depth + 1)];
  const name = Array.isArray(schema.type) ? schema.type.join(" or ") : (schema.type ?? "anything");
  if (typeof values === "object") return [`${name} of `, ...type(values, depth + 1)];
  const least = schema.minimum !== undefined ? ` ≥ ${schema.minimum}` : "";
  return [schema.pattern ? make("span", { title: schema.pattern }, `${name} (pattern)`) : name + least];
}

/** @param {(Node | string)[][]} parts */
function joined(parts) {
  return parts.flatMap((part, place) => (place ? [" or ", ...part] : part));
}

/** @param {Json} document @param {Json} value @returns {Json} */
function follow(document, value) {
  if (!value.$ref) return value;
  const steps = value.$ref.slice(2).split("/").map((/** @type {string} */ step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
  return steps.reduce((/** @type {Json} */ found, /** @type {string} */ step) => found[step], document);
}

/** @param {string} reference */
function last(reference) {
  return reference.slice(reference.lastIndexOf("/") + 1);
}

/** @param {unknown} is */
function required(is) {
  return is ? make("span", { class: "required" }, " required") : "";
}

/** @param {string[]} head @param {(Node | string)[][][]} rows */
function table(head, rows) {
  const cells = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, ...cell))));
  const heads = head.map((name) => (name ? make("th", { scope: "col" }, name) : make("td")));
  return make("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": "Table" },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...cells)));
}

/** @param {string} text */
function block(text) {
  return make("pre", { tabindex: "0", role: "group", "aria-label": "Command" }, make("code", {}, text));
}

/** @param {string} [text] */
function prose(text) {
  return text ? make("p", {}, ...inline(text)) : null;
}

/** Return a text with what stands between backticks as code. @param {string} text */
function inline(text) {
  return text.split("`").map((part, place) => (place % 2 ? make("code", {}, part) : part));
}
