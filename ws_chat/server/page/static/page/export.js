/** A conversation as a file. */
import { answer, path } from "./conversations.js";
import { make } from "./dom.js";
import * as images from "./images.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

/** Save what is shown of a conversation as Markdown. @param {Conversation} conversation */
export function saveMarkdown(conversation) {
  const parts = [`# ${conversation.title}`, ...(conversation.system ? [`## System\n\n${conversation.system}`] : [])];
  for (const turn of path(conversation)) {
    const shown = turn.images.map(() => "*(an image)*");
    parts.push(`## You\n\n${[turn.question, ...shown].join("\n\n")}`, `## ${turn.model ?? "Assistant"}\n\n${answer(turn).trimEnd()}`);
  }
  save(`${parts.join("\n\n")}\n`, `${name(conversation)}.md`, "text/markdown");
}

/** Save all versions of a conversation as JSON, images included. @param {Conversation} conversation */
export async function saveJSON(conversation) {
  const ids = conversation.turns.flatMap(({ images: shown }) => shown);
  await images.load(ids);
  const kept = Object.fromEntries(ids.map((id) => [id, images.known(id)]));
  save(JSON.stringify({ ...conversation, images: kept }, null, 2), `${name(conversation)}.json`, "application/json");
}

/** @param {Conversation} conversation */
function name({ title }) {
  return title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().replaceAll(" ", "-").slice(0, 60) || "conversation";
}

/** @param {string} text @param {string} file @param {string} type */
function save(text, file, type) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
