/**
 * What may take long, away from the page: reading Markdown and colouring code. A text can be written so that either takes
 * minutes; background.js ends this worker then. The answers are trees (tree.js), because a worker has no elements.
 */
import { colour } from "./highlight.js";
import { read } from "./markdown.js";

/** @type {Record<string, (given: any) => unknown>} */
const JOBS = { read, colour };

addEventListener("message", async ({ data: { job, given } }) => {
  try {
    postMessage({ result: await JOBS[job](given) });
  } catch (error) {
    postMessage({ error: String(error) }); // nested too deep for the stack, or a file could not be loaded
  }
});
postMessage({ ready: true });
