"""Soak: thousands of broken connections, and not a delta lost or doubled. `make soak`.

First generations over a network that resets connections at random moments, in front of an upstream whose bytes fall
into random reads; then ten thousand generations that come and go, and the memory they leave behind; and for the rest of
ten minutes everything at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import time
from typing import Any

from load.soak_mixed import check, mixed, resident
from support.dropping import DroppingProxy
from support.service import running

from ws_chat import Settings, create_app
from ws_chat.client import Chat, backoff, connect
from ws_chat.testing import DONE, FakeOpenAI, Reply, chunk, sse, usage_chunk

HELLO = [{"role": "user", "content": "hi"}]
TEXT = "".join(f"{number} \u3084\u3063\u307b\n" for number in range(700))
ARGUMENTS = json.dumps({"list": list(range(300))})


def answer(chance: random.Random) -> Reply:
    """Return one and the same answer, cut into deltas and reads at random."""
    events = [sse(chunk({"content": piece})) for piece in cut(chance, TEXT, 7)]
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    events.append(sse(chunk({"tool_calls": [head]})))
    pieces = cut(chance, ARGUMENTS, 9)
    events += [sse(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})) for piece in pieces]
    events += [sse(chunk({}, "tool_calls")), sse(usage_chunk()), DONE]
    return Reply(cut(chance, b"".join(events), 20_000))


def cut(chance: random.Random, whole: Any, most: int) -> list[Any]:
    """Cut a text or bytes into pieces of 1 to `most`."""
    pieces = []
    while whole:
        size = chance.randint(1, most)
        pieces.append(whole[:size])
        whole = whole[size:]
    return pieces


async def drops(generations: int, wanted: int, seed: int) -> None:
    """Ask until there were so many generations and drops; end the program at the first fault."""
    backoff.FIRST_PAUSE, backoff.LONGEST_PAUSE = 0.005, 0.05  # thousands of pauses for people would take hours
    chance = random.Random(seed)
    fake = FakeOpenAI()
    await fake.start()
    settings = Settings(openai_base_url=fake.base_url, openai_api_key="none", max_generations_per_connection=100)
    count = 0
    async with running(create_app(settings), settings) as service:
        port = int(service.url.rsplit(":", 1)[1])
        proxy = DroppingProxy(port, lambda: 250 + int(chance.expovariate(1 / 2500)))
        await proxy.start()

        async def ask(link: Chat) -> None:
            nonlocal count
            while count < generations or proxy.drops < wanted:
                count += 1
                fake.default = answer(chance)
                reply, last = link.ask(HELLO), 0
                async for frame in reply:
                    check(frame["seq"] > last, "seq rises")
                    last = frame["seq"]
                check(reply.text == TEXT, "the text is the same")
                check([call["function"]["arguments"] for call in reply.tool_calls] == [ARGUMENTS], "so are its calls")
                check((reply.status, reply.seq) == ("completed", last + 1), "and its end")

        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(alone(proxy.url, ask))
        check(len(fake.requests) == count, "each was paid for once")
        print(f"{count} generations, {proxy.drops} dropped connections (seed {seed}): 0 lost, 0 doubled", flush=True)
        await proxy.stop()
    await fake.stop()


async def alone(url: str, ask: Any) -> None:
    async with connect(url, patience=600) as link:
        await ask(link)


async def memory(generations: int) -> None:
    """Let generations come and go at a server of its own, and print what memory it takes before and after."""
    environ = {**os.environ, "WS_CHAT_UPSTREAM": "demo", "WS_CHAT_RETENTION": "1"}
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ws_chat", "serve", "--port", "0"), env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert server.stderr
        port = ""
        while not port:
            line = (await server.stderr.readline()).decode()
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", line)
            port = found[1] if found else ""
        asyncio.create_task(server.stderr.read())  # noqa: RUF006  (a full pipe would stop the server)
        async with connect(f"ws://127.0.0.1:{port}") as link:
            await come_and_go(link, 500)
            before = resident(server.pid)
            await come_and_go(link, generations)
            at_once = resident(server.pid)
            await asyncio.sleep(2)  # longer than the retention: it is what makes memory free again
            later = resident(server.pid)
            print(f"memory: {before} KB, {at_once} KB after {generations} named generations, {later} KB later")
    finally:
        server.terminate()
        await server.wait()


async def come_and_go(link: Chat, generations: int) -> None:
    for _ in range(0, generations, 10):
        await asyncio.gather(*(link.ask(HELLO, model="demo-fast").end() for _ in range(10)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--drops", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600, help="of all, at most some more")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    asyncio.run(drops(options.generations, options.drops, options.seed))
    asyncio.run(memory(10_000))
    asyncio.run(mixed(max(20.0, end - time.monotonic()), options.seed))


if __name__ == "__main__":
    main()
