/**
 * What may take long, away from the page: reading Markdown, setting formulas and colouring code. A text can be written so
 * that each takes minutes; background.js ends this worker then. The answers are trees (tree.js), because a worker has no
 * elements.
 */
import { colour } from "./highlight.js";
import { read } from "./markdown.js";

/** @type {Record<string, (given: any, loads: typeof loading) => unknown>} */
const JOBS = { read, colour };

/** The time limit is none for the network. @template Result @param {Promise<Result>} promise @returns {Promise<Result>} */
async function loading(promise) {
  postMessage({ loading: true });
  try {
    return await promise;
  } finally {
    postMessage({ loading: false });
  }
}

addEventListener("message", async ({ data: { job, given } }) => {
  try {
    postMessage({ result: await JOBS[job](given, loading) });
  } catch (error) {
    postMessage({ error: String(error) }); // nested too deep for the stack, or a file could not be loaded
  }
});
postMessage({ ready: true });
