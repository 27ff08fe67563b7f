"""Stress: what one server carries at once. `make stress` runs every part, and prints a table at the end.

The tests have small versions of these parts. Here the server is a process of its own, `ws-chat serve`, so that its
memory is counted alone. A part fails when an answer is not whole, or when something is left after its clients are gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import uvloop
from support.peers import CHAT, UPGRADE, unchunked
from support.processes import Running, program
from support.service import HELLO, events, joined
from support.waiting import limited, until
from websockets.asyncio.client import connect

from ws_chat.testing import FakeOpenAI, Reply, Wait, chunk, sse, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PART_LIMIT = 300.0
"""Seconds after which a part counts as hanging."""
IDLE = 10_000
IDLE_KB = 64
"""KB of the server's memory that an idle socket takes at most."""
GENERATIONS = 5000
READERS = 3000
ASKING = 500
SLOW = 20
AT_ONCE = 200
"""How many connections are opened at the same time."""


class CheckError(AssertionError):
    """The server did not do what this part is about."""


def check(holds: object, message: str) -> None:
    if not holds:
        raise CheckError(message)


class Row(NamedTuple):
    """What a part has measured."""

    what: str
    count: int
    kb_each: float | None = None
    """KB of the server's memory for each of them, where that was measured."""


class Service:
    """The server under stress."""

    def __init__(self, running: Running, port: int, fake: FakeOpenAI) -> None:
        self.pid = running.process.pid
        self.port = port
        self.fake = fake
        self.stream_url = f"http://127.0.0.1:{port}/v1/chat/stream"
        self.ws_url = f"ws://127.0.0.1:{port}/v1/chat/ws"

    def resident(self) -> int:
        """Return the KB of memory that the process takes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    async def figure(self, name: str) -> float:
        """Return the sum of a metric, whatever its labels."""
        async with httpx.AsyncClient(timeout=None) as client:
            page = (await client.get(f"http://127.0.0.1:{self.port}/metrics")).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))

    async def nothing_left(self) -> None:
        async def empty() -> bool:
            return not (await self.figure("ws_chat_connections") or await self.figure("ws_chat_generations_running"))

        await until(empty, "every connection and generation to end")


@contextlib.asynccontextmanager
async def serving(**variables: str) -> AsyncIterator[Service]:
    """Run a server in front of a fake upstream."""
    async with FakeOpenAI() as fake:
        command = ("ws-chat", "serve", "--port", "0")
        async with program(*command, OPENAI_BASE_URL=fake.base_url, **variables) as running:
            port = await running.port()
            reading = asyncio.create_task(running.process.stderr.read())  # a full pipe would stop it
            try:
                yield Service(running, port, fake)
            finally:
                reading.cancel()
                await asyncio.wait({reading})


class Client(asyncio.Protocol):
    """A WebSocket client that costs little: it keeps the payloads of text frames, and answers pings."""

    def __init__(self) -> None:
        self.open = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.frames: list[bytes] = []
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(UPGRADE)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.open.done():
            head, separator, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not separator:
                return
            check(head.startswith(b"HTTP/1.1 101 "), f"the handshake was refused: {head!r}")
            self._buffer[:] = rest
            self.open.set_result(None)
        while frame := self._frame():
            opcode, payload = frame
            if opcode == 1:
                self.frames.append(payload)
            elif opcode == 9:
                self.send(0xA, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        error = CheckError(f"a connection was lost: {exc}")
        for future in (self.open, self.lost):
            if not future.done():
                future.set_exception(error)
                future.exception()  # it may be that no part waits for it

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame of up to 125 bytes, masked with zeros (RFC 6455, section 5.2)."""
        self.transport.write(bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload)

    def _frame(self) -> tuple[int, bytes] | None:
        """Take a whole frame out of the buffer, if there is one."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return None
        opcode, payload = buffer[0] & 0xF, bytes(buffer[start : start + size])
        del buffer[: start + size]
        return opcode, payload

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return joined([json.loads(frame) for frame in self.frames])

    async def end(self) -> list[dict[str, Any]]:
        """Wait for a terminal frame, and return all frames."""
        ends = (b'{"type":"done"', b'{"type":"error"')
        await until(lambda: self.lost.done() or (self.frames and self.frames[-1].startswith(ends)), "a terminal frame")
        if self.lost.done():
            self.lost.result()
        return [json.loads(frame) for frame in self.frames]


async def clients(service: Service, count: int) -> list[Client]:
    """Open so many WebSockets."""
    opened: list[Client] = []
    loop = asyncio.get_running_loop()

    async def one() -> Client:
        _, client = await loop.create_connection(Client, "127.0.0.1", service.port)
        await client.open
        return client

    while len(opened) < count:
        opened += await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - len(opened)))))
    return opened


def drop(opened: list[Client]) -> None:
    for client in opened:
        client.transport.abort()


async def idle(scale: float, _: random.Random) -> Row:
    """Open sockets that only answer pings; another one is served as ever."""
    count = round(IDLE * scale)
    async with serving() as service:
        await (await clients(service, 1))[0].open  # what the first one loads is not counted
        before = service.resident()
        opened = await clients(service, count)
        kb_each = (service.resident() - before) / count
        async with httpx.AsyncClient(timeout=None) as client:
            response = await client.post(service.stream_url, json={"messages": HELLO})
        check(b"[DONE]" in response.content, "a request beside the idle sockets is answered")
        lost = sum(client.lost.done() for client in opened)
        check(not lost, f"{lost} idle sockets were closed")
        drop(opened)
        check(kb_each < IDLE_KB, f"an idle socket takes {kb_each:.1f} KB, more than {IDLE_KB}")
    return Row("idle sockets", count, kb_each)


async def generations(scale: float, _: random.Random) -> Row:
    """Run generations at the same time, 500 on each socket."""
    each = 500
    sockets = max(1, round(GENERATIONS * scale / each))
    gate = asyncio.Event()
    async with serving(WS_CHAT_MAX_GENERATIONS_PER_CONNECTION=str(each)) as service:
        service.fake.default = Reply([sse(chunk({"content": "a"})), Wait(gate), *text("b")])
        before = service.resident()

        async def ask() -> list[list[dict[str, Any]]]:
            async with connect(service.ws_url, open_timeout=None, ping_timeout=None, max_size=None) as socket:
                for _ in range(each):
                    await socket.send(json.dumps({"messages": HELLO}))
                frames: dict[str, list[dict[str, Any]]] = {}
                ends = 0
                while ends < each:
                    frame = json.loads(await socket.recv())
                    frames.setdefault(frame["id"], []).append(frame)
                    ends += frame["type"] in ("done", "error")
                return list(frames.values())

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask()) for _ in range(sockets)]
            await service.fake.request(sockets * each)
            kb_each = (service.resident() - before) / (sockets * each)
            gate.set()
        for task in asking:
            whole = sum(frames[-1]["type"] == "done" and joined(frames) == "ab" for frames in task.result())
            check(whole == each, f"{each - whole} of {each} answers are not whole")
        await service.nothing_left()
    return Row("generations at once", sockets * each, kb_each)


async def readers(scale: float, chance: random.Random) -> Row:
    """Follow one generation from many connections, half of them over SSE, each from a position of its own."""
    count = round(READERS * scale)
    first, last = ([f"{number} {chance.random()} " for number in range(100)] for _ in range(2))
    gate = asyncio.Event()
    async with serving() as service:
        steps = text(*first, *last)[1:]
        service.fake.default = Reply([*steps[: len(first)], Wait(gate), *steps[len(first) :]])
        (asking,) = await clients(service, 1)
        asking.send(1, json.dumps({"messages": HELLO, "id": "r1"}).encode())
        await until(lambda: asking.text == "".join(first), "the first half of the answer")
        before = service.resident()
        sockets = await clients(service, count // 2)
        positions = [chance.randrange(len(first) + 1) for _ in sockets]
        for client, after in zip(sockets, positions, strict=True):
            client.send(1, json.dumps({"type": "resume", "id": "r1", "after": after}).encode())
        streams = [await follow(service, chance.randrange(len(first) + 1)) for _ in range(count - len(sockets))]
        await until(lambda: all(client.frames for client in sockets), "every socket to follow")
        kb_each = (service.resident() - before) / count
        gate.set()
        pieces = [*first, *last]
        for client, after in zip(sockets, positions, strict=True):
            check(joined(await client.end()) == "".join(pieces[after:]), f"the text after {after} is whole")
        for reader, writer, after in streams:
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
            found = "".join(event["data"] for event in events(unchunked(body))[:-1])
            check(found == "".join(pieces[after:]), f"the text after {after} is whole over SSE")
            writer.close()
        check(joined(await asking.end()) == "".join(pieces), "so is that of the one that asked")
        check(len(service.fake.requests) == 1, "the upstream was asked once")
        drop([asking, *sockets])
        await service.nothing_left()
    return Row("readers of one generation", count, kb_each)


async def follow(service: Service, after: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Follow the generation r1 over SSE; return when the head of the response has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1 << 24)
    writer.write(b"GET /v1/chat/stream/r1?after=%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % after)
    status = await reader.readline()
    check(status == b"HTTP/1.1 200 OK\r\n", f"a reader over SSE got {status!r}")
    return reader, writer, after


async def flood(scale: float, _: random.Random) -> Row:
    """Send broken frames on one socket as fast as it takes them; others are answered."""
    count = round(ASKING * scale)
    async with serving() as service:
        service.fake.default = Reply(text(*(f"{number} " for number in range(50))))
        async with connect(service.ws_url, open_timeout=None, ping_interval=None) as flooding:

            async def send() -> None:
                while True:
                    await flooding.send("{" * 50)

            async def read() -> None:
                async for _ in flooding:
                    pass

            floods = [asyncio.create_task(send()), asyncio.create_task(read())]
            opened = await clients(service, count)
            for client in opened:
                client.send(1, CHAT)
            for client in opened:
                check(joined(await client.end()).endswith("49 "), "an answer beside the flood is whole")
            for task in floods:
                task.cancel()
            await asyncio.wait(floods)
            flooding.transport.abort()
        drop(opened)
        await service.nothing_left()
    return Row("answers beside a flood", count)


async def slow(scale: float, _: random.Random) -> Row:
    """Read long answers late: they wait in the log, and not in a buffer for each socket."""
    count = max(1, round(SLOW * scale))
    words = [f"{number:06} {'x' * 10_000}\n" for number in range(1000)]  # 10 MB
    async with serving(WS_CHAT_WRITE_TIMEOUT="600") as service:
        service.fake.default = Reply(text(*words))
        (asking,) = await clients(service, 1)
        asking.send(1, json.dumps({"messages": HELLO, "id": "r1"}).encode())
        await asking.end()
        before = service.resident()
        opened = await clients(service, count)
        for client in opened:
            client.transport.pause_reading()
            client.send(1, json.dumps({"type": "resume", "id": "r1"}).encode())

        async def followed() -> bool:
            return await service.figure("ws_chat_follows_total") >= count

        await until(followed, "every slow reader to follow")
        kb_each = (service.resident() - before) / count
        check(kb_each < 2000, f"a slow reader takes {kb_each:.0f} KB of the server's memory")
        for client in opened:
            client.transport.resume_reading()
            check(joined(await client.end()) == "".join(words), "a slow reader gets the whole text")
            client.frames.clear()
        drop([asking, *opened])
        await service.nothing_left()
    return Row("slow readers of 10 MB", count, kb_each)


PARTS: dict[str, Callable[[float, random.Random], Awaitable[Row]]] = {
    "idle": idle,
    "generations": generations,
    "readers": readers,
    "flood": flood,
    "slow": slow,
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"the parts to run, separated by commas, of {','.join(PARTS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="run so many times the usual number")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 1.2 * max(IDLE, 2 * GENERATIONS) * options.scale:
        parser.error(f"only {hard} files may be open: raise the limit (ulimit -Hn), or use --scale")
    _print(f"seed {options.seed}", "count", "seconds", "KB each")
    failures = 0
    for name in names:
        started = time.monotonic()

        async def run(name: str = name, started: float = started) -> None:
            row = await PARTS[name](options.scale, random.Random(f"{options.seed}/{name}"))
            kb_each = "" if row.kb_each is None else f"{row.kb_each:.1f}"
            _print(row.what, row.count, f"{time.monotonic() - started:.1f}", kb_each)

        try:
            uvloop.run(limited(run, PART_LIMIT)())
        except (Exception, pytest.fail.Exception):  # noqa: BLE001  (the other parts may tell more)
            failures += 1
            _print(name, "FAILED")
            traceback.print_exc()
    sys.exit(bool(failures))


def _print(what: object, count: object, seconds: object = "", kb_each: object = "") -> None:
    print(f"{what!s:<28}{count!s:>8}{seconds!s:>10}{kb_each!s:>10}", flush=True)


if __name__ == "__main__":
    main()
