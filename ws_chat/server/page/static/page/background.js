/**
 * Runs jobs of worker.js, one after the other, each with a time limit: a job beyond it is given up with its worker, and
 * the text stays plain.
 */

import { trusted } from "./trusted.js";

const ADDRESS = new URL("./worker.js", import.meta.url).href;
const LIMIT = 1000; // milliseconds; what people read takes a few
const LATE = 50;
const LOADING_LIMIT = 20_000; // for the worker itself, and for what it loads

export class Background {
  /** @type {{ job: string, given: unknown, resolve: (result: any) => void }[]} */ #jobs = [];
  /** @type {Worker | null} */ #worker = null;
  #ready = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #limit;

  constructor(limit = LIMIT) {
    this.#limit = limit;
  }

  /** Return a job's result, or null where it failed or took too long. @param {string} job @param {unknown} given @returns {Promise<any>} */
  run(job, given) {
    return new Promise((resolve) => {
      this.#jobs.push({ job, given, resolve });
      if (this.#jobs.length === 1) this.#next();
    });
  }

  /** Start the worker, so that the first job need not wait for it. */
  warm() {
    this.#worker ??= this.#start();
  }

  #next() {
    if (!this.#jobs.length) return;
    this.#worker ??= this.#start();
    if (!this.#ready) return;
    const { job, given } = this.#jobs[0];
    this.#wait(this.#limit);
    this.#worker.postMessage({ job, given });
  }

  #start() {
    const worker = new Worker(trusted(ADDRESS), { type: "module" });
    worker.onmessage = ({ data }) => {
      if (data.loading !== undefined) {
        this.#wait(data.loading ? LOADING_LIMIT : this.#limit);
        return;
      }
      clearTimeout(this.#timer);
      if (data.ready) this.#ready = true;
      else this.#jobs.shift()?.resolve(data.error === undefined ? data.result : null);
      this.#next();
    };
    worker.onerror = (event) => {
      event.preventDefault(); // the job that failed is plain text
      this.#giveUp();
    };
    this.#wait(LOADING_LIMIT);
    return worker;
  }

  #wait(/** @type {number} */ limit) {
    clearTimeout(this.#timer);
    const due = performance.now() + limit;
    this.#timer = setTimeout(() => {
      // If this comes late, the page was busy itself, and the result may be waiting for it.
      if (performance.now() > due + LATE) this.#wait(limit);
      else this.#giveUp();
    }, limit);
  }

  /** End the worker with the job that it is at; the next job gets a new one. */
  #giveUp() {
    clearTimeout(this.#timer);
    this.#worker?.terminate();
    this.#worker = null;
    this.#ready = false;
    this.#jobs.shift()?.resolve(null);
    this.#next();
  }
}

export const background = new Background();
background.warm();
