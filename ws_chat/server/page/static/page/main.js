/** The page, put together. */
import { Answers } from "./answers.js";
import { composer } from "./composer.js";
import { Conversations } from "./conversations.js";
import { get } from "./dom.js";
import { saveMarkdown } from "./export.js";
import { Frames } from "./frames.js";
import { sweep } from "./images.js";
import { install } from "./install.js";
import { key, notices } from "./key.js";
import { Line } from "./line.js";
import { list } from "./list.js";
import { menu } from "./menu.js";
import { options } from "./options.js";
import { panels } from "./panels.js";
import { Streams } from "./streams.js";
import { Thread } from "./thread.js";

const { models, needsKey, maxBytes } = JSON.parse(document.querySelector("meta[name=ws-chat]")?.getAttribute("content") ?? "{}");

const line = new Line();
const conversations = new Conversations();
conversations.open(location.hash.slice(1));
const answers = new Answers(conversations, line);
const thread = new Thread(conversations, answers);
const notify = notices();
composer(conversations, answers, thread, { maxBytes, notify });
options(conversations, line, models);
menu(conversations, list(conversations, answers, notify));
panels({ streams: new Streams(conversations, answers), frames: new Frames(line, needsKey) });
key(line, needsKey, notify);

line.addEventListener("moved", () => {
  answers.move();
  void line.chat; // a key that is wrong is told now
});
conversations.addEventListener("full", () => notify("This browser has no room to keep this conversation: it ends with the page."));
/** @type {import("./conversations.js").Conversation[]} */
const evicted = [];
conversations.addEventListener("evicted", (event) => {
  evicted.push(/** @type {CustomEvent} */ (event).detail.conversation);
  const titles = evicted.map(({ title }) => `“${title}”`).join(", ");
  const what = evicted.length > 1 ? `the oldest conversations, ${titles}, were deleted` : `the oldest conversation, ${titles}, was deleted`;
  const save = () => evicted.splice(0).forEach(saveMarkdown);
  notify(`There was no more room in this browser: ${what}.`, { label: "Save as a file", run: save });
});
conversations.addEventListener("turn", () => {
  const { id, turns } = conversations.current;
  if (turns.length && location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
});
addEventListener("hashchange", () => conversations.open(location.hash.slice(1)));
for (const button of document.querySelectorAll(".new")) {
  button.addEventListener("click", () => {
    if (location.hash) history.pushState(null, "", location.pathname + location.search);
    conversations.open();
    get("question").focus();
  });
}
addEventListener("pagehide", () => conversations.saveRunning());
document.addEventListener("visibilitychange", () => document.hidden && conversations.saveRunning());

if (line.key || !needsKey) {
  void line.chat;
  answers.followAll({ asksAgain: true });
  get("question").focus();
}
addEventListener("load", () => {
  void install();
  void sweep(new Set(conversations.list.flatMap(({ turns }) => turns.flatMap(({ images }) => images))));
});
