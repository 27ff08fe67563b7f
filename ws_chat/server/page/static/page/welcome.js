/** The first screen: what to try. */
import { make } from "./dom.js";

const EXAMPLES = [
  ["Explain", "Why is the sky blue? With a formula."],
  ["Write code", "Write a Python function that merges two sorted lists."],
  ["Compare", "Compare WebSockets and server-sent events in a table."],
  ["Plan", "Plan a weekend in Kyoto as a list."],
];

/** @param {(question: string) => void} ask */
export function welcome(ask) {
  const cards = EXAMPLES.map(([label, question]) =>
    make("button", { type: "button", class: "example", click: () => ask(question) },
      make("span", { class: "example-label" }, label), make("span", {}, question)));
  return make("div", { class: "welcome" },
    make("h2", {}, "What would you like to know?"),
    make("p", {}, "Reload, lose the network or open a second tab in the middle of an answer: it goes on."),
    make("div", { class: "examples" }, ...cards));
}
