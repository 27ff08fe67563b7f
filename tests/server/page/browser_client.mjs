// The browser client, under Node. test_browser_client.py starts what it talks to, and runs each test by its name (TEST).
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const page = new EventTarget(); // what a browser's window is to the client
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.removeEventListener = page.removeEventListener.bind(page);

const { ChatError, ConnectionLostError, GenerationGoneError, HistoryGoneError, connect } = await import(
  "../../../ws_chat/server/page/static/ws-chat.js"
);

const { URL: url, CONTROL: control } = process.env;
const HELLO = [{ role: "user", content: "hi" }];
const LONG = Array.from({ length: 1500 }, (_, number) => `${number} `).join("");
const ANY_UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** Have something done on the other side, and wait until it is. */
const have = async (name) => assert.equal((await fetch(`${control}/${name}`)).status, 200);

const collect = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};

const tests = new Map();

/** Define a test, which runs in a process of its own. */
const test = (name, run) => tests.set(name, run);

/** Define a test with a chat, which is closed at the end. */
const chatting = (name, run, options) => test(name, () => using(connect(url, options), run));

async function using(chat, run) {
  try {
    await run(chat);
  } finally {
    chat.close();
    assert.equal(chat.state, "closed");
  }
}

/** Time for one client of its own: it stands still until `pass` moves it. */
class Clock {
  #now = 0; // milliseconds
  #timers = new Map();
  #count = 0;
  performance = { now: () => this.#now };
  clearTimeout = (timer) => this.#timers.delete(timer);
  setTimeout = (call, pause) => {
    this.#timers.set((this.#count += 1), { call, at: this.#now + pause });
    return this.#count;
  };

  /** Let so many seconds pass; what is due is done in its order. */
  pass(seconds) {
    const end = this.#now + seconds * 1000;
    for (;;) {
      const [next] = [...this.#timers].filter(([, { at }]) => at <= end).sort(([, one], [, other]) => one.at - other.at);
      if (!next) break;
      this.#timers.delete(next[0]);
      this.#now = next[1].at;
      next[1].call();
    }
    this.#now = end;
  }
}

/** Define a test with a chat whose time is a Clock, and whose random numbers are all `chance`. */
function timed(name, run, { chance = 0.5, ...options } = {}) {
  test(name, async () => {
    const clock = new Clock();
    globalThis.timed = { ...clock, Math: { min: Math.min, random: () => chance } };
    const source = await readFile(new URL("../../../ws_chat/server/page/static/ws-chat.js", import.meta.url), "utf8");
    const names = "const { setTimeout, clearTimeout, performance, Math } = globalThis.timed;";
    const client = await import(`data:text/javascript,${encodeURIComponent(`${names}\n${source}`)}`);
    await using(client.connect(url, options), (chat) => run(chat, clock));
  });
}

/** Return the next event of a kind. */
const next = (chat, kind) => new Promise((resolve) => chat.addEventListener(kind, resolve, { once: true }));

/** Read a whole answer by its frames, which must be those of an answer that nothing happened to. */
async function whole(reply) {
  const frames = await collect(reply);
  assert.deepEqual([frames[0].type, frames.at(-1).type], ["start", "done"]);
  const tokens = frames.slice(1, -1);
  assert.ok(tokens.every((frame) => frame.type === "token"));
  assert.ok(tokens.every((frame, place) => frame.seq > (tokens[place - 1]?.seq ?? 0)));
  const text = tokens.map((frame) => frame.content ?? "").join("");
  assert.equal(text, reply.text);
  assert.equal(frames.at(-1), await reply.end);
  return text;
}

chatting("text", async (chat) => {
  assert.deepEqual(await collect(chat.ask("hi", { temperature: 0.5 }).texts()), ["Hel", "lo"]);
  const messages = [...HELLO];
  const reply = chat.ask(messages, { model: "m-1" });
  messages.push("what is changed later is not sent");
  assert.match(reply.id, ANY_UUID);
  assert.deepEqual([reply.ended, reply.text, reply.seq, reply.status], [false, "", 0, null]);
  const done = await reply.end;
  assert.deepEqual([done.type, done.id, reply.ended], ["done", reply.id, true]);
  assert.deepEqual([reply.text, reply.seq, reply.status, reply.finishReason], ["Hello", 3, "completed", "stop"]);
  assert.deepEqual([reply.usage.completion_tokens, reply.model], [2, "gpt-4o-mini-2024-07-18"]);
});

chatting("frames", async (chat) => {
  const reply = chat.ask("weather?", { tools: [{ type: "function", function: { name: "f" } }] });
  const frames = await collect(reply);
  assert.deepEqual(
    frames.map((frame) => [frame.type, frame.seq]),
    [["start", 0], ["token", 1], ["token", 2], ["token", 3], ["done", 4]],
  );
  assert.equal(frames[2].tool_calls[0].function.arguments, '{"a"');
  assert.equal(reply.finishReason, "tool_calls");
  assert.deepEqual(reply.toolCalls.map((call) => [call.id, call.type, call.function]), [
    ["c1", "function", { name: "f", arguments: '{"a":1}' }],
    ["c2", "function", { name: "g", arguments: "{}" }],
  ]);
  const second = chat.ask([{ role: "tool", tool_call_id: "c1", content: "ok" }], { previousId: reply.id });
  await second.end;
  assert.equal(second.text, "Hello");
});

chatting("leaving", async (chat) => {
  const reply = chat.ask(HELLO);
  await reply.end;
  for await (const text of reply.texts()) {
    assert.equal(text, "Hel");
    break;
  }
  assert.deepEqual(await collect(reply.texts()), ["lo"]);
  assert.deepEqual(await collect(reply), []);
});

chatting("cancel", async (chat) => {
  const reply = chat.ask(HELLO);
  for await (const text of reply.texts()) {
    assert.equal(text, "a");
    reply.cancel();
    reply.cancel();
  }
  assert.deepEqual([reply.status, reply.text, reply.finishReason], ["cancelled", "a", null]);
  reply.cancel();
});

chatting("signal", async (chat) => {
  const controller = new AbortController();
  const reply = chat.ask(HELLO, { signal: controller.signal });
  for await (const text of reply.texts()) controller.abort(text);
  assert.equal(reply.status, "cancelled");
  const never = chat.ask(HELLO, { signal: controller.signal });
  assert.equal((await never.end).status, "cancelled");
});

chatting("several", async (chat) => {
  const replies = Array.from({ length: 10 }, () => chat.ask(HELLO));
  assert.deepEqual(await Promise.all(replies.map(whole)), Array(10).fill("Hello"));
  await have("expect-one-connection");
});

chatting("breaking", async (chat) => {
  const replies = Array.from({ length: 10 }, () => chat.ask(HELLO));
  assert.deepEqual(await Promise.all(replies.map(whole)), Array(10).fill(LONG));
  assert.ok(replies.every((reply) => reply.status === "completed" && reply.seq === 1501));
});

chatting("aborted", async (chat) => {
  const opened = [];
  chat.addEventListener("sent", ({ detail }) => opened.push(JSON.parse(detail)));
  const reply = chat.ask(HELLO);
  const texts = [];
  for await (const text of reply.texts()) {
    texts.push(text);
    if (text === process.env.AT) await have("abort");
    await have("go");
  }
  assert.equal(texts.join(""), "abcd");
  assert.deepEqual([reply.status, reply.seq, (await reply.end).seq], ["completed", 5, 5]);
  assert.deepEqual(opened.map((frame) => [frame.type, frame.id, frame.after]), [
    ["chat", reply.id, undefined],
    ["resume", reply.id, " abcd".indexOf(process.env.AT)],
  ]);
});

chatting("unacknowledged", async (chat) => {
  const opened = [];
  chat.addEventListener("sent", ({ detail }) => opened.push(detail));
  assert.equal(await whole(chat.ask(HELLO)), "Hello");
  assert.equal(opened.length, 2);
  assert.equal(opened[0], opened[1]);
});

chatting("cancel-while-away", async (chat) => {
  const reply = chat.ask(HELLO);
  chat.addEventListener("state", ({ detail }) => detail === "connecting" && reply.cancel());
  for await (const _ of reply.texts()) await have("abort");
  assert.deepEqual([reply.status, reply.text], ["cancelled", "a"]);
});

chatting("follow", async (chat) => {
  const first = chat.ask(HELLO);
  const iterator = first.texts();
  assert.equal((await iterator.next()).value, "a");
  const other = connect(url);
  const second = other.resume(first.id);
  const third = other.ask("another");
  assert.throws(() => other.resume(first.id), /already/);
  const frames = second[Symbol.asyncIterator]();
  assert.deepEqual([(await frames.next()).value.type, (await frames.next()).value.content], ["start", "a"]);
  await have("go");
  await Promise.all([first.end, second.end, third.end]);
  assert.deepEqual([first.text, second.text, second.seq], ["abcd", "abcd", 5]);
  for (const [after, rest] of [[1, "bcd"], [4, ""], [5, ""]]) {
    const later = other.resume(first.id, { after });
    assert.deepEqual([(await later.end).seq, later.text], [5, rest]);
  }
  other.close();
});

chatting("errors", async (chat) => {
  const fails = (reply, expected) =>
    assert.rejects(reply.end, (error) => {
      assert.ok(error instanceof ChatError && error instanceof Error);
      const { code, type, status, retryable } = error;
      assert.deepEqual([code, type, status, retryable], expected);
      return true;
    });
  await fails(chat.ask(HELLO), ["upstream_rejected", "upstream_error", 400, false]);
  await fails(chat.ask(HELLO), ["upstream_rate_limited", "rate_limit_error", 429, true]);
  const broken = chat.ask(HELLO);
  await assert.rejects(collect(broken.texts()), { code: "upstream_incomplete" });
  assert.deepEqual([broken.text, broken.status, broken.ended], ["a", null, true]);
  await assert.rejects(chat.ask(HELLO, { previousId: "r9" }).end, { name: "ChatError", code: "not_found" });
  await assert.rejects(chat.ask([]).end, { code: "invalid_request", param: "messages" });
  await assert.rejects(chat.ask("half an emoji: \ud83d").end, { code: "invalid_json" });
  await assert.rejects(chat.resume("r9").end, HistoryGoneError);
  assert.throws(() => chat.ask(HELLO, { id: "no id" }), TypeError);
  assert.equal(await whole(chat.ask(HELLO)), "Hello");
});

chatting("too-large", async (chat) => {
  const huge = chat.ask("x".repeat(2000));
  const small = chat.ask(HELLO);
  await assert.rejects(huge.end, { name: "ChatError", code: "too_large", status: 413 });
  assert.equal(await whole(small), "Hello");
});

chatting("history", async (chat) => {
  const reply = chat.ask(HELLO);
  await assert.rejects(
    (async () => {
      for await (const _ of reply.texts()) await have("abort");
    })(),
    (error) => error instanceof HistoryGoneError && error.code === "not_found" && error.name === "HistoryGoneError",
  );
  assert.equal(reply.text, "a");
});

const gone = (error) => error instanceof GenerationGoneError && error instanceof HistoryGoneError && error.status === 410;

chatting("used-again", async (chat) => {
  const first = chat.ask(HELLO, { id: "r1" });
  assert.equal(await whole(first), "abc");
  await have("forget");
  const second = chat.ask(HELLO, { id: "r1" });
  assert.equal(await whole(second), "XYZ");
  assert.notEqual(first.epoch, second.epoch);
  for (const after of [1, 4, 9]) {
    const old = chat.resume("r1", { after, epoch: first.epoch });
    await assert.rejects(old.end, gone);
    assert.equal(old.text, "");
  }
  assert.equal(await whole(chat.resume("r1", { after: 1, epoch: second.epoch })), "YZ");
  const again = chat.resume("r1", { epoch: first.epoch });
  assert.equal(await whole(again), "XYZ");
  assert.equal(again.epoch, second.epoch);
});

chatting("given-out", async (chat) => {
  const reply = chat.ask(HELLO);
  await assert.rejects(collect(reply.texts()), (error) => error instanceof GenerationGoneError);
  assert.deepEqual([reply.text, reply.seq, reply.epoch], ["a", 1, "e1"]);
});

chatting("nothing-given-out", async (chat) => {
  const reply = chat.ask(HELLO);
  const frames = await collect(reply);
  assert.deepEqual([reply.text, reply.status, reply.epoch], ["XY", "completed", "e2"]);
  assert.deepEqual(frames.map(({ type, epoch }) => [type, epoch]).slice(-4), [
    ["start", "e2"],
    ["token", undefined],
    ["token", undefined],
    ["done", undefined],
  ]);
});

chatting("cancelled-and-gone", async (chat) => {
  const reply = chat.resume("r1", { epoch: "e1" });
  reply.cancel();
  await reply.end;
  assert.deepEqual([reply.text, reply.status], ["", "cancelled"]);
});

timed("patience", async (chat, clock) => {
  const reply = chat.ask(HELLO);
  assert.equal((await reply.texts().next()).value, "a");
  const lost = next(chat, "state");
  await have("stop");
  await lost;
  clock.pass(59.9);
  assert.equal(reply.ended, false);
  clock.pass(0.1);
  await assert.rejects(reply.end, { name: "ConnectionLostError", message: /60 s: it could not be reached, or/ });
  assert.equal(reply.text, "a");
});

// A server that accepts, acknowledges and breaks off is there, but brings nothing on. Patience ends in the fifth pause.
timed("breaks-off", async (chat, clock) => {
  const pauses = [0.2, 0.4, 0.8, 1.6, 3.2];
  chat.addEventListener("state", ({ detail }) => {
    if (detail === "connecting") setImmediate(() => clock.pass(pauses.shift()));
  });
  const reply = chat.ask(HELLO);
  await assert.rejects(reply.end, { name: "ConnectionLostError", message: /closed with code 1011: a bug/ });
  assert.deepEqual(pauses, []);
}, { chance: 1, patience: 5 });

chatting("policy", async (chat) => {
  await assert.rejects(chat.ask(HELLO).end, { name: "ConnectionLostError", message: /refused: .* 1008: no key/ });
  await have("expect-one-connection");
});

chatting("goaway", async (chat) => {
  const first = chat.ask(HELLO);
  chat.addEventListener("received", async ({ detail }) => detail.includes("goaway") && going());
  let going;
  await new Promise((resolve) => (going = resolve));
  const second = chat.ask(HELLO);
  await second.end;
  assert.deepEqual([second.text, first.text, first.ended], ["new", "", false]);
  await have("finish");
  await first.end;
  assert.equal(first.text, "old");
  await have("expect-the-old-one-closed");
});

chatting("move", async (chat) => {
  const reply = chat.ask(HELLO);
  await reply.end;
  assert.deepEqual(await collect(reply.texts()), ["a", "b"]);
  await have("expect-the-old-one-closed");
});

chatting("move-nowhere", async (chat) => {
  assert.equal(await whole(chat.ask(HELLO)), "ab");
});

chatting("draining", async (chat) => {
  assert.equal(await whole(chat.ask(HELLO)), "new");
});

timed("silence", async (chat, clock) => {
  const reply = chat.ask(HELLO);
  await next(chat, "sent");
  clock.pass(20);
  const lost = next(chat, "state");
  clock.pass(10);
  assert.equal((await lost).detail, "connecting");
  clock.pass(1);
  assert.equal(await whole(reply), "new");
});

timed("offline", async (chat, clock) => {
  if (chat.state !== "open") await next(chat, "state");
  chat.open(); // does nothing
  const lost = next(chat, "state");
  page.dispatchEvent(new Event("offline"));
  clock.pass(2);
  assert.equal((await lost).detail, "closed");
  const opened = next(chat, "state");
  chat.open();
  assert.equal((await opened).detail, "connecting");
  assert.equal(await whole(chat.ask(HELLO)), "new");
});

timed("pong", async (chat, clock) => {
  chat.addEventListener("received", () => setImmediate(() => clock.pass(20)));
  assert.equal(await whole(chat.ask(HELLO)), "new");
}, { patience: 60 });

// The pause of the second attempt is made endless: only what wakes the client ends it.
test("wake", async () => {
  const random = Math.random;
  Math.random = () => 1e6;
  const chat = connect(url);
  const reply = chat.ask(HELLO);
  const states = [];
  chat.addEventListener("state", ({ detail }) => {
    states.push(detail);
    if (states.join() === "open,connecting") setTimeout(() => page.dispatchEvent(new Event("online")));
  });
  assert.equal(await whole(reply), "Hello");
  chat.close();
  Math.random = random;
  assert.deepEqual(states, ["open", "connecting", "open", "closed"]);
});

test("key", async () => {
  const { randomUUID } = crypto;
  crypto.randomUUID = undefined; // a page over http that is not on localhost
  const chat = connect(`${url}/`, { apiKey: "sk-ключ?>" });
  const reply = chat.ask(HELLO);
  assert.match(reply.id, ANY_UUID);
  assert.equal(await whole(reply), "new");
  chat.close();
  crypto.randomUUID = randomUUID;
  assert.throws(() => chat.ask(HELLO), /closed/);
});

test("mounted", async () => {
  const mounts = ["/chat/", "/chat", "/chat/v1", "/chat/v1/chat/ws", "/socket/ws"];
  for (const mount of mounts) {
    const chat = connect(url + mount);
    assert.equal(await whole(chat.ask(HELLO)), "new");
    chat.close();
  }
});

test("closing", async () => {
  const chat = connect(url);
  const reply = chat.ask(HELLO);
  assert.equal((await reply.texts().next()).value, "a");
  chat.close();
  await assert.rejects(reply.end, ConnectionLostError);
});

const { TEST } = process.env;
try {
  await tests.get(TEST)();
} catch (error) {
  const [line] = /browser_client\.mjs:\d+/.exec(error.stack) ?? ["browser_client.mjs"];
  console.error(`"${TEST}" in ${line}: ${error.stack}`);
  process.exit(1);
}
