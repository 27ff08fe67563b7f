"""Attack: what one hostile client, or a hostile upstream, costs the others. `make attack`, two to three minutes.

Each case has a server process of its own. While another process attacks it, this one measures the round trip of
`{"type":"ping"}` on the socket of another principal, without the time in which the server waited for a core, and the
memory of the server. `--server` runs the server of another
checkout with the same cases, to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from support.peers import UPGRADE
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ATTACK_SECONDS = 4.0
"""Seconds after which an attack is ended."""
SETUP_SECONDS = 40.0
MAX_PING = 100.0
"""Milliseconds."""
MAX_GROWTH = 100.0
"""MB."""
EVE, ALICE = "key-of-eve", "key-of-alice"
HELLO = [{"role": "user", "content": "hi"}]
MEGABYTE = 1024 * 1024


# The hostile upstream: what it sends depends on the name of the model.

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
STREAM = OK + b"Connection: close\r\n\r\n"


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"
    )


END = event({}, "stop") + b"data: [DONE]\n\n"
BEGUN = STREAM + event({"content": "a"})


def many(count: int, piece: bytes) -> list[bytes]:
    """Return so many copies of a piece, in reads of about a megabyte."""
    at_once = max(1, MEGABYTE // len(piece))
    return [piece * at_once] * (count // at_once) + [piece * (count % at_once)]


def script(model: str) -> tuple[list[bytes], bytes]:
    """Return what is sent at first, and what is repeated after it."""
    kind, _, count = model.partition(":")
    bomb = gzip.compress(bytes(1000 * MEGABYTE // 4), 9) if kind == "gzip" else b""
    match kind:
        case "answer":
            return [STREAM, *many(int(count), event({"content": "word "})), END], b""
        case "large":
            return [STREAM, *[event({"content": "x" * 50_000})] * int(count), END], b""
        case "refuse":
            return [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"], b""
        case "header":
            return [OK + b"X: "], b"y" * 65536
        case "headers":
            return [OK], b"".join(b"X-%06d: %b\r\n" % (number, b"y" * 100) for number in range(600))
        case "gzip":
            return [OK + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + bomb], b""
        case "usage":
            huge = b'data: {"choices":[],"usage":{"x":[' + b"[]," * (15 * MEGABYTE // 3) + b"1]}}\n\n"
            return [BEGUN, event({}, "stop"), huge, huge, b"data: [DONE]\n\n"], b""
        case "comments":
            return [BEGUN], b":\n" * 500_000
        case "tiny":
            return [BEGUN], b"data:{}\n\n" * 100_000
        case "endless":
            return [BEGUN], event({"content": "word "}) * 5000
        case "slow":
            return [BEGUN, b"wait", END], b""
    return [STREAM, event({"content": "Hello"}), END], b""


async def upstream() -> None:
    """Serve, and print the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
            assert length
            body = await reader.readexactly(int(length[1]))
            named = re.search(rb'"model":"([\w:-]+)"', body[:200] + body[-200:])
            first, repeated = script(named[1].decode() if named else "")
            for part in first:
                if part == b"wait":
                    await asyncio.sleep(SETUP_SECONDS)
                else:
                    writer.write(part)
                    await writer.drain()
            while repeated:
                writer.write(repeated)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=MEGABYTE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The hostile clients. Each case is prepared, then attacks.


class Eve(NamedTuple):
    """The attacker's client."""

    port: int

    def socket(self, **options: Any) -> connect:
        url = f"ws://127.0.0.1:{self.port}/v1/chat/ws"
        given = {
            "max_size": None,
            "open_timeout": None,
            "ping_interval": None,
            "compression": None,
            "close_timeout": 0.1,
        }
        return connect(url, additional_headers={"Authorization": f"Bearer {EVE}"}, **given | options)

    async def chat(self, model: str, generation_id: str | None = None, messages: Any = HELLO) -> None:
        """Send a chat and read its answer to the end."""
        async with self.socket() as socket:
            await send(socket, model=model, messages=messages, **({"id": generation_id} if generation_id else {}))
            await until_end(socket)

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return reader, writer

    async def upgraded(self) -> asyncio.StreamWriter:
        key = b"Authorization: Bearer %b\r\n\r\n" % EVE.encode()
        reader, writer = await self.raw(UPGRADE[:-2] + key)
        await reader.readuntil(b"\r\n\r\n")
        reader_task = asyncio.create_task(discard(reader))
        KEPT.append(reader_task)
        return writer

    async def follow(self, generation_id: str) -> None:
        """Read a generation over SSE, to its end."""
        head = f"GET /v1/chat/stream/{generation_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {EVE}\r\n\r\n"
        reader, writer = await self.raw(head.encode())
        await discard(reader)
        writer.close()


KEPT: list[asyncio.Task[None]] = []


async def discard(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(MEGABYTE):
            pass


async def send(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


async def until_end(socket: ClientConnection) -> None:
    async for text in socket:
        if '"type":"done"' in text[:20] or '"type":"error"' in text[:20]:
            return


def conversation(size: int) -> list[dict[str, Any]]:
    """Return messages of about so many bytes, of 45,000 objects."""
    return [{"role": "user", "content": [{"text": "x" * (size // 45_000 - 14)}] * 45_000}]


async def conflicts(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("ok", "big", conversation(4_190_000))
    async with eve.socket() as socket:
        yield
        for _ in range(31):
            await send(socket, id="big", messages=HELLO)
        for _ in range(31):
            await socket.recv()


async def continuations(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("ok", "big", conversation(4_100_000))
    async with eve.socket() as socket:
        yield
        for _ in range(15):
            await send(socket, previous_id="big", messages=HELLO, model="ok")
        for _ in range(15):
            await until_end(socket)


async def continuations_of_many_deltas(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("answer:136000", "big")
    async with eve.socket() as socket:
        yield
        for _ in range(15):
            await send(socket, previous_id="big", messages=HELLO, model="ok")
        for _ in range(15):
            await until_end(socket)


async def values(eve: Eve) -> AsyncIterator[None]:
    frame = b'{"messages":[{"role":"user","content":[' + b"[]," * 1_380_000 + b"1]}]}"
    async with eve.socket() as socket:
        yield
        for _ in range(3):
            await socket.send(frame, text=True)
            await until_end(socket)


async def replays(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("answer:136000", "long")
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(eve.socket()) for _ in range(10)]
        yield
        for socket in sockets:
            await send(socket, type="resume", id="long")
        await asyncio.gather(*map(until_end, sockets))


async def replays_over_sse(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("answer:300000", "long")
    yield
    await asyncio.gather(*(eve.follow("long") for _ in range(20)))


async def large_deltas(eve: Eve) -> AsyncIterator[None]:
    await eve.chat("large:200", "large")
    yield
    await asyncio.gather(*(eve.follow("large") for _ in range(20)))


async def readers(eve: Eve) -> AsyncIterator[None]:
    """1,500 readers of one generation, which ends."""
    async with eve.socket() as socket:
        await send(socket, id="r1", model="slow", messages=HELLO)
        await socket.recv()
        following = []
        for _ in range(30):
            following += [asyncio.create_task(eve.follow("r1")) for _ in range(50)]
            await asyncio.sleep(0.1)  # opening so many at once would be another attack
        yield
        await send(socket, type="cancel", id="r1")
        await asyncio.gather(*following)


async def fragments(eve: Eve) -> AsyncIterator[None]:
    writer = await eve.upgraded()
    yield
    writer.write(Frame(Opcode.TEXT, b"[", fin=False).serialize(mask=True))
    part = Frame(Opcode.CONT, b" ", fin=False).serialize(mask=True) * 10_000
    while True:
        writer.write(part)
        await writer.drain()


async def pings(eve: Eve) -> AsyncIterator[None]:
    """Protocol pings on twenty sockets."""
    writers = [await eve.upgraded() for _ in range(20)]
    part = Frame(Opcode.PING, b"x").serialize(mask=True) * 10_000
    yield

    async def flood(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(part)
            await writer.drain()

    await asyncio.gather(*map(flood, writers))


async def bad_frames(eve: Eve) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(eve.socket()) for _ in range(10)]
        yield

        async def flood(socket: ClientConnection) -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    for _ in range(50):
                        await socket.send('{"type":"resume","id":"none"}')
                    for _ in range(50):
                        await socket.recv()

        await asyncio.gather(*map(flood, sockets))


async def failures(eve: Eve) -> AsyncIterator[None]:
    """70 named chats of 4.1 MB that the upstream refuses."""
    yield
    for number in range(70):
        await eve.chat("refuse", f"f{number}", conversation(4_100_000))


async def files(eve: Eve) -> AsyncIterator[None]:
    yield
    idle = []
    for _ in range(400):
        with contextlib.suppress(OSError):
            idle.append(await eve.raw(b"GET "))
    await asyncio.sleep(1)  # while they are open
    for _, writer in idle:
        writer.close()


def hostile_upstream(model: str, count: int = 1) -> Callable[[Eve], AsyncIterator[None]]:
    async def ask(eve: Eve) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(eve.chat(model) for _ in range(count)))

    return ask


async def nothing(_: Eve) -> AsyncIterator[None]:
    yield
    await asyncio.sleep(2)


CASES: dict[str, Callable[[Eve], AsyncIterator[None]]] = {
    "nothing": nothing,
    "31 frames of 55 bytes, id of a kept 4 MiB request": conflicts,
    "15 previous_id of a kept 4 MiB request": continuations,
    "15 previous_id of an answer of 136,000 deltas": continuations_of_many_deltas,
    "3 frames of 4.1 MB of `[],`": values,
    "10 sockets resume 136,000 deltas": replays,
    "20 GETs of 300,000 deltas": replays_over_sse,
    "20 GETs of 200 deltas of 50 KB": large_deltas,
    "1,500 readers, and the end": readers,
    "fragments of one byte": fragments,
    "20 sockets flood with protocol pings": pings,
    "10 sockets flood with resumes of nothing": bad_frames,
    "70 failing chats of 4.1 MB": failures,
    "400 idle connections, 100 file descriptors": files,
    "upstream: a header without an end": hostile_upstream("header"),
    "upstream: headers without an end": hostile_upstream("headers"),
    "upstream: 250 MB of zeros, gzipped": hostile_upstream("gzip"),
    "upstream: usage of 15 MB of `[],`": hostile_upstream("usage"),
    "upstream: comments without an end": hostile_upstream("comments", 3),
    "upstream: tiny events without an end": hostile_upstream("tiny", 3),
    "upstream: an answer without an end": hostile_upstream("endless"),
}


async def attacker(name: str, port: int) -> None:
    """Prepare a case, print "ready", attack when a line is read."""
    attack = CASES[name](Eve(port))
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            await anext(attack)
    except StopAsyncIteration:
        return
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    with contextlib.suppress(StopAsyncIteration, TimeoutError, ConnectionError, ConnectionClosed):
        async with asyncio.timeout(ATTACK_SECONDS):
            await anext(attack)


# The measurement.


class Row(NamedTuple):
    name: str
    ping: float
    """Milliseconds."""
    growth: float
    """MB."""
    cpu: float
    """Seconds."""
    fault: str

    @property
    def fine(self) -> bool:
        return self.ping <= MAX_PING and self.growth <= MAX_GROWTH and not self.fault


@contextlib.asynccontextmanager
async def process(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    running = await asyncio.create_subprocess_exec(sys.executable, *command, **pipes | options)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def line_of(running: asyncio.subprocess.Process) -> str:
    assert running.stdout
    return (await running.stdout.readline()).decode().strip()


@contextlib.asynccontextmanager
async def server(checkout: Path, upstream_port: int) -> AsyncIterator[tuple[int, int]]:
    """Run a server; give its process id and its port."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WS_CHAT_", "OPENAI_"))},
        "PYTHONPATH": str(checkout),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
        "OPENAI_API_KEY": "sk-of-the-operator",
        "WS_CHAT_API_KEYS": f"{EVE},{ALICE}",
        "WS_CHAT_RETENTION": "600",
    }
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        command = ("-m", "ws_chat", "serve", "--port", "0", "--log-level", "info")
        async with process(*command, env=environment, cwd=folder, stdout=log, stderr=log) as running:
            async with asyncio.timeout(SETUP_SECONDS):
                while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", text_of(log.name))):
                    await asyncio.sleep(0.05)
            yield running.pid, int(found[1])


def text_of(path: str) -> str:
    return Path(path).read_text()


def memory(pid: int) -> float:
    """Return the memory of a process in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def waiting(pid: int) -> float:
    """Return the seconds in which a process and this one have waited for a core: a busy machine is no fault of the server."""
    return sum(int(Path(f"/proc/{each}/schedstat").read_text().split()[1]) for each in (pid, "self")) / 1e9


def cpu(pid: int) -> float:
    """Return the CPU time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(name: str, checkout: Path, upstream_port: int) -> Row:
    async with contextlib.AsyncExitStack() as stack:
        pid, port = await stack.enter_async_context(server(checkout, upstream_port))
        url = f"ws://127.0.0.1:{port}/v1/chat/ws"
        options = {"open_timeout": None, "ping_interval": None, "compression": None}
        headers = {"Authorization": f"Bearer {ALICE}"}
        alice = await stack.enter_async_context(connect(url, additional_headers=headers, **options))
        await send(alice, id="kept", model="large:100", messages=HELLO)
        await until_end(alice)
        eve = await stack.enter_async_context(
            process("-m", "load.attack", "--attacker", name, "--port", str(port), env={**os.environ})
        )
        async with asyncio.timeout(SETUP_SECONDS):
            if await line_of(eve) != "ready":
                return Row(name, 0, 0, 0, "the attack could not be prepared")
        if CASES[name] is files:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, 100))
        before, used = memory(pid), cpu(pid)
        assert eve.stdin
        eve.stdin.write(b"\n")
        await eve.stdin.drain()
        worst, most = 0.0, before
        ended = asyncio.create_task(eve.wait())
        answered = asyncio.create_task(healthy(pid, port)) if CASES[name] is files else None
        while not ended.done():
            start, waited = time.perf_counter(), waiting(pid)
            await alice.send('{"type":"ping"}')
            await alice.recv()
            worst = max(worst, time.perf_counter() - start - (waiting(pid) - waited))
            most = max(most, memory(pid))
            await asyncio.sleep(0.005)  # the pace of the measurement
        fault = "" if answered is None or await answered else "/healthz did not answer"
        await send(alice, type="resume", id="kept")
        if json.loads(await alice.recv())["type"] != "start":
            fault = "another principal's answer is gone"
        return Row(name, worst * 1000, most - before, cpu(pid) - used, fault)


async def healthy(pid: int, port: int) -> bool:
    """Whether /healthz answers, as often as it is asked, once the files of the server are used up."""
    while len(os.listdir(f"/proc/{pid}/fd")) < 69:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)  # until a server without a reserve has used that up too
    try:
        async with httpx.AsyncClient(timeout=5) as client:
            answers = [await client.get(f"http://127.0.0.1:{port}/healthz") for _ in range(10)]
    except httpx.HTTPError:
        return False
    return all(answer.status_code == 200 for answer in answers)


def shown(rows: list[Row]) -> str:
    lines = ["| attack | ping, ms | growth, MB | CPU, s | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        verdict = row.fault or ("" if row.fine else "too much")
        lines.append(f"| {row.name} | {row.ping:.0f} | {row.growth:.0f} | {row.cpu:.1f} | {verdict} |")
    return "\n".join(lines)


async def main(checkout: Path, only: str) -> int:
    rows = []
    async with process("-m", "load.attack", "--upstream", env={**os.environ}) as hostile:
        upstream_port = int(await line_of(hostile))
        for name in CASES:
            if re.search(only, name):
                row = await measure(name, checkout, upstream_port)
                print(shown([row]).splitlines()[-1], flush=True)
                rows.append(row)
    print(f"\n{checkout}\n\n{shown(rows)}")
    return not all(row.fine for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=Path, default=Path(__file__).parents[2], help="the checkout whose server runs")
    parser.add_argument("--only", default="", help="the cases whose names this regular expression finds")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--attacker", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    todo: Awaitable[Any]
    if options.upstream:
        todo = upstream()
    elif options.attacker:
        todo = attacker(options.attacker, options.port)
    else:
        todo = main(options.server.resolve(), options.only)
    sys.exit(asyncio.run(todo))  # type: ignore[arg-type]
