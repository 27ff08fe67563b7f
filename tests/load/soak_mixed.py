"""Everything at once, for minutes, at a server in a process of its own: broken connections, cancels, slow readers,
interruptions, both doors, an upstream that fails now and then. A line for each interval; it ends at the first fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from support.dropping import DroppingProxy
from support.processes import Running, program
from support.service import events, joined
from support.waiting import until
from websockets.asyncio.client import connect as connect_socket

from ws_chat.client import Chat, UpstreamError, backoff, connect
from ws_chat.testing import FakeOpenAI, Hang, Pause, Recorded, Reply, text

PIECES = [f"{number} やっほ\n" for number in range(300)]
TEXT = "".join(PIECES)
REQUEST = {"messages": [{"role": "user", "content": "hi"}]}
WARM = 0.3
"""The part of the time after which memory shall not grow any more."""


class Upstream(FakeOpenAI):
    """Says what the model's name asks for."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    def record(self, request: Recorded) -> Reply:
        steps = text(*PIECES)
        match request.body["model"]:
            case "endless":
                return Reply([*steps[: self.chance.randint(2, 200)], Hang()])
            case "broken":
                return Reply(text(*PIECES[: self.chance.randint(1, 100)], finish_reason=None))
        if self.chance.random() < 0.3:  # slowly
            parts = [b"".join(steps[at : at + 60]) for at in range(0, len(steps), 60)]
            steps = [step for part in parts for step in (part, Pause(0.02))]
        return Reply(steps)


class Mixed:
    """The actors, each in a loop of its own, and what they have seen."""

    def __init__(self, url: str, broken_url: str) -> None:
        self.url = url
        self.broken_url = broken_url
        self.seen: Counter[str] = Counter()

    async def ask(self, client: Chat) -> None:
        """Read a whole answer, over a network that breaks."""
        reply = await client.ask("hi")
        check(reply.text == TEXT, f"{len(reply.text)} characters instead of {len(TEXT)}")
        check(reply.seq == len(PIECES) + 1, "every delta counts once")

    async def interrupt(self, client: Chat) -> None:
        """Leave an answer in the middle, by going on from it."""
        first = client.ask("hi")
        async for _ in first.texts():
            break
        second = await client.ask("and?", previous=first)
        check(second.text == TEXT, "what comes after an interruption is whole")
        check(TEXT.startswith((await first).text), "what was interrupted is a beginning")

    async def cancel(self, client: Chat) -> None:
        """Cancel after a delta."""
        reply = client.ask("hi", model="endless")
        async for _ in reply:
            break
        await reply.cancel()
        await reply
        check(reply.status == "cancelled" and TEXT.startswith(reply.text), "a cancelled answer is a beginning")

    async def fail(self, client: Chat) -> None:
        """See an answer break off."""
        reply = client.ask("hi", model="broken")
        with contextlib.suppress(UpstreamError):
            await reply
        check(reply.status == "failed" and TEXT.startswith(reply.text), "what broke off is an error")

    async def crawl(self, _: Chat) -> None:
        """Read over a socket that takes little at a time."""
        async with connect_socket(self.socket_url, max_queue=1) as socket:
            await socket.send(json.dumps(REQUEST))
            frames: list[dict[str, Any]] = []
            while not frames or frames[-1]["type"] not in ("done", "error"):
                frames.append(json.loads(await socket.recv()))
                await asyncio.sleep(0.005)  # the reader is slow
            check(joined(frames) == TEXT, "a slow reader gets all of it")

    async def stream(self, _: Chat) -> None:
        """Read over SSE."""
        async with httpx.AsyncClient(timeout=None) as client:
            response = await client.post(self.url + "/v1/chat/stream", json=REQUEST)
        *texts, done = events(response.content)
        check("".join(event["data"] for event in texts) == TEXT, "so does an event stream")
        check(done["data"] == "[DONE]", "and it has an end")

    async def leave(self, _: Chat) -> None:
        """Go away in the middle, without a word."""
        async with connect_socket(self.socket_url) as socket:
            await socket.send(json.dumps({**REQUEST, "model": "endless"}))
            await socket.recv()
            socket.transport.abort()

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws") + "/v1/chat/ws"

    async def again_and_again(self, name: str, until: float) -> None:
        """Do one of these until the time is over."""
        url = self.broken_url if name in ("ask", "interrupt") else self.url
        async with connect(url, patience=600) as client:
            while time.monotonic() < until:
                await getattr(self, name)(client)
                self.seen[name] += 1


async def mixed(seconds: float, seed: int) -> None:
    """Run all actors for so long, print a table, and look for what is left behind."""
    backoff.FIRST_PAUSE, backoff.LONGEST_PAUSE = 0.005, 0.05
    chance = random.Random(seed)
    upstream = Upstream(chance)
    await upstream.start()
    variables = {"OPENAI_BASE_URL": upstream.base_url, "WS_CHAT_RETENTION": "2", "WS_CHAT_RESUME_WINDOW": "2"}
    async with program("ws-chat", "serve", "--port", "0", **variables) as server:
        port = await server.port()
        reading = asyncio.create_task(faults(server))
        proxy = DroppingProxy(port, lambda: 500 + int(chance.expovariate(1 / 8000)))
        await proxy.start()
        actors = Mixed(f"http://127.0.0.1:{port}", proxy.url)
        warm = await act(actors, proxy, server.process.pid, seconds)
        await proxy.stop()
        await nothing_left(actors.url)
        left = resident(server.process.pid)
        reading.cancel()
        await asyncio.wait({reading})
    await upstream.stop()
    check(left < warm * 1.1, f"memory is flat: {warm} KB when warm, {left} KB at the end")
    print(f"memory {warm} KB when warm, {left} KB at the end; nothing lost, doubled or left behind", flush=True)


async def act(actors: Mixed, proxy: DroppingProxy, pid: int, seconds: float) -> int:
    """Let the actors do what they do, and tell of it; return the memory of the server when it was warm, in KB."""
    begin, end, warm = time.monotonic(), time.monotonic() + seconds, 0
    names = ["ask", "interrupt", "cancel", "fail", "crawl", "stream", "leave"]
    print("seconds" + "".join(f"{name:>11}" for name in [*names, "drops", "memory KB"]), flush=True)
    async with asyncio.TaskGroup() as group:
        for name in [*names, "ask", "ask"]:
            group.create_task(actors.again_and_again(name, end))
        while time.monotonic() < end:
            await asyncio.sleep(seconds / 10)  # a line of the table for each interval
            passed, memory = time.monotonic() - begin, resident(pid)
            warm = warm or (memory if passed >= seconds * WARM else 0)
            counts = [actors.seen[name] for name in names] + [proxy.drops, memory]
            print(f"{passed:7.0f}" + "".join(f"{count:11}" for count in counts), flush=True)
    return warm


async def nothing_left(url: str) -> None:
    """Wait until the server has nobody to serve and nothing to do."""
    async with httpx.AsyncClient(timeout=None) as client:

        async def nothing() -> bool:
            figures = (await client.get(url + "/metrics")).text
            left = re.findall(r"^ws_chat_(?:connections|generations_running)\{.*\} (\S+)$", figures, re.MULTILINE)
            return bool(left) and not any(map(float, left))

        await until(nothing, "the server to have no connections and no generations")


async def faults(server: Running) -> None:
    """Read a server's log, and end at the first line that tells of a fault of its own."""
    assert server.process.stderr
    while line := (await server.process.stderr.readline()).decode():
        check("Traceback" not in line and '"level":"error"' not in line, line)


def resident(pid: int) -> int:
    """Return the memory of a process in KB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"not so: {what}")
