"""The system under test, in processes of its own: replicas, a Redis with a secondary, and TCP proxies that break."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from load.chaos.history import Fault, Run, delta
from redis.asyncio import Redis
from support.processes import RedisServer, environment, free_port, listens, need
from support.waiting import until

from ws_chat.testing import FakeOpenAI, Pause, Recorded, Reply, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from load.chaos.history import FaultKind, History

REPLICAS = ("r0", "r1", "r2")
CLIENT_GONE = "ASGI callable returned without completing response."
"""What uvicorn logs when a client leaves between the head of an event stream and its first event."""
DRAIN_TIMEOUT = 3
ENDED_WITHIN = 30.0
"""Seconds in which a replica ends after a signal, on a slow machine too."""
PULSE = 0.2
"""Seconds between two measurements of how late everything is."""


def question(generation_id: str, use: int, size: int, rate: float) -> dict[str, Any]:
    """Return a chat request whose answer has `size` deltas, `rate` per second."""
    return {"id": generation_id, "messages": [{"role": "user", "content": f"{generation_id} {use} {size} {rate}"}]}


class Upstream(FakeOpenAI):
    """Gives each request a run of its own. The first part of the path names the replica that sent it."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history
        self._open: list[tuple[Run, Recorded]] = []

    def url_for(self, replica: str) -> str:
        return f"{self.base_url.removesuffix('/v1')}/{replica}/v1"

    def record(self, request: Recorded) -> Reply:
        generation_id, use, size, rate = request.body["messages"][-1]["content"].split()
        owner = request.path.split("/")[1]
        number = len(self._history.runs) + 1
        run = Run(number, generation_id, int(use), owner, int(size), time.monotonic())
        self._history.runs.append(run)
        self._open.append((run, request))
        return Reply(self._steps(run, float(rate)))  # type: ignore[arg-type]  # it is iterated once

    def settle(self) -> None:
        """Record which runs have ended because their connection was closed."""
        for run, request in self._open:
            if run.ended is None and request.closed_at is not None:
                run.ended = request.closed_at
        self._open = [(run, request) for run, request in self._open if run.ended is None]

    def _steps(self, run: Run, rate: float) -> Iterator[Any]:
        role, *events, finish, usage, last = text(*(delta(run.number, seq) for seq in range(1, run.size + 1)))
        yield role
        for event in events:
            yield event
            run.sent += 1
            yield Pause(1 / rate)
        yield finish + usage + last
        run.ended, run.completed = time.monotonic(), True


class Proxy:
    """A TCP proxy to a port of 127.0.0.1. Each direction is forwarded, held back, or discarded."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.cut = False
        """Accept no connection."""
        self._held: dict[str, bool] = {"up": False, "down": False}
        self._thrown_away: dict[str, bool] = {"up": False, "down": False}
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self, "up"), "127.0.0.1", self.port)

    def stop(self) -> None:
        if self._server:
            self._server.close()
        self.reset()

    def lead_to(self, port: int) -> None:
        """Break all connections; forward new ones to this port."""
        self.target = port
        self.reset()

    def reset(self) -> None:
        """Break all connections."""
        for end in list(self._ends):
            end.abort()

    def hold(self, *directions: str) -> None:
        """Hold back all data in these directions (`up`: to the server)."""
        for direction in directions:
            self._held[direction] = True

    def throw_away(self, *directions: str) -> None:
        """Discard all data in these directions."""
        for direction in directions:
            self._thrown_away[direction] = True

    def flow(self) -> None:
        """Forward what was held back, and everything after it."""
        self._held = dict.fromkeys(self._held, False)
        self._thrown_away = dict.fromkeys(self._thrown_away, False)
        for end in list(self._ends):
            end.flush()


class _End(asyncio.Protocol):
    """One end of a proxied connection. It forwards what it receives to its peer."""

    transport: asyncio.Transport

    def __init__(self, proxy: Proxy, direction: str, peer: _End | None = None) -> None:
        self._proxy = proxy
        self._direction = direction
        self._peer = peer
        self._kept: list[bytes] = []
        self._closed = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._proxy._ends.add(self)
        if self._proxy.cut:
            self.transport.abort()
        elif self._peer is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, peer = await loop.create_connection(
                lambda: _End(self._proxy, "down", self), "127.0.0.1", self._proxy.target
            )
        except OSError:
            self.transport.abort()
            return
        self._peer = peer
        self.flush()

    def data_received(self, data: bytes) -> None:
        if not self._proxy._thrown_away[self._direction]:
            self._kept.append(data)
            self.flush()

    def flush(self) -> None:
        """Forward what may be forwarded, even if the sender has disconnected: Redis executes commands that were held back."""
        if self._peer is None or self._proxy._held[self._direction]:
            return
        if self._kept and not self._peer._closed:
            self._peer.transport.write(b"".join(self._kept))
        self._kept.clear()
        if self._closed:
            self._proxy._ends.discard(self)
            self._peer.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        if self._peer is None:
            self._proxy._ends.discard(self)
        else:
            self.flush()

    def abort(self) -> None:
        self._kept.clear()
        self._proxy._ends.discard(self)
        self.transport.abort()


class Replica:
    """A `ws-chat serve` of a checkout, which can be killed, suspended and started again on its port."""

    def __init__(
        self, name: str, server: Path, redis_port: int, folder: Path, settings: dict[str, str], workers: int
    ) -> None:
        self.name = name
        self.proxy = Proxy(redis_port)
        self.port = free_port()
        self.stopped = False
        self.workers = workers
        self.process: asyncio.subprocess.Process | None = None
        python = server.resolve() / ".venv/bin/python"
        self._python = str(python if python.exists() else sys.executable)
        self._log = folder / f"{name}.log"
        self._settings = {
            **settings,
            "PYTHONPATH": str(server.resolve()),
            "WS_CHAT_REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}/0",
        }
        self._log.touch()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None and not self.stopped

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        command = (self._python, "-m", "ws_chat", "serve", "--port", str(self.port), "--workers", str(self.workers))
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                env=environment(**self._settings),
                cwd=self._log.parent,  # `-m` prefers a package that is there
                stdout=log,
                stderr=log,
            )

        async def started() -> bool:
            assert self.process
            assert self.process.returncode is None, f"{self.name} has ended:\n{self.log}"
            return await listens(self.port)

        await until(started, f"{self.name} to listen on port {self.port}")

    def kill_worker(self) -> None:
        """Kill the worker that was started last. The others live on."""
        os.kill(int(re.findall(r"Started server process \[(\d+)\]", self.log)[-1]), signal.SIGKILL)

    def send(self, number: int) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(number)

    async def end(self, number: int) -> None:
        """End it with a signal, and wait for its end. If it does not end, kill it, and write that to its log."""
        if self.process:
            self.send(number)
            self.send(signal.SIGCONT)
            try:
                async with asyncio.timeout(ENDED_WITHIN):
                    await self.process.wait()
            except TimeoutError:
                with self._log.open("a") as log:
                    log.write(f'"level":"error" it did not end within {ENDED_WITHIN:.0f} s of signal {number}\n')
                self.send(signal.SIGKILL)
                await self.process.wait()


class Site:
    """All processes, and the record of the faults."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.upstream = Upstream(history)
        self.replicas: list[Replica] = []
        self.primary: RedisServer
        self.secondary: RedisServer | None = None
        self.replication: Proxy | None = None
        self.folder = folder
        self._clock: mmap.mmap | None = None
        self._strike = asyncio.Event()

    async def struck(self, seconds: float) -> None:
        """Wait until a fault is about to happen, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._strike.wait()

    def strike(self) -> None:
        """Wake those who wait in `struck`."""
        self._strike.set()
        self._strike = asyncio.Event()

    @contextlib.contextmanager
    def fault(self, kind: FaultKind, replica: Replica | None = None) -> Iterator[Fault]:
        """Record a fault for as long as the block lasts."""
        self.strike()
        fault = Fault(kind, time.monotonic(), None, replica.name if replica else None)
        self.history.faults.append(fault)
        try:
            yield fault
        finally:
            fault.end = time.monotonic()

    def happened(self, kind: FaultKind, replica: Replica | None = None) -> None:
        """Record a fault that is over at once."""
        with self.fault(kind, replica):
            pass

    def redis(self) -> Redis:
        """Return a client of the primary, past all proxies."""
        return Redis.from_url(self.primary.url)

    async def start_redis(self, *, secondary: bool, clock: bool) -> None:
        self.primary = RedisServer(*OPTIONS)
        if clock:
            self._use_clock()
        await self.primary.start()
        if secondary:
            await self.replicate()

    async def replicate(self) -> None:
        """Start a new secondary of the primary, and wait until it has all data."""
        if self.replication:
            self.replication.lead_to(self.primary.port)
            self.replication.flow()
        else:
            self.replication = Proxy(self.primary.port)
            await self.replication.start()
        self.secondary = RedisServer(*OPTIONS, "--replicaof", "127.0.0.1", str(self.replication.port))
        await self.secondary.start()

        async def in_sync() -> bool:
            async with Redis.from_url(self.secondary.url) as redis:  # type: ignore[union-attr]
                return (await redis.info("replication")).get("master_link_status") == "up"

        await until(in_sync, "the secondary to have all data")

    async def promote(self) -> None:
        """Kill the primary, make the secondary the primary, and connect all replicas to it."""
        assert self.secondary
        dead, self.primary, self.secondary = self.primary, self.secondary, None
        await dead.remove()
        async with self.redis() as redis:
            await redis.execute_command("REPLICAOF", "NO", "ONE")
        for replica in self.replicas:
            replica.proxy.lead_to(self.primary.port)

    def step_clock(self, seconds: int) -> None:
        """Step the wall clock of Redis by `seconds`."""
        assert self._clock
        (step,) = struct.unpack("l", self._clock[:8])
        self._clock[:8] = struct.pack("l", step + seconds)

    def _use_clock(self) -> None:
        library = self.folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        command = [need("cc"), "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        path = self.folder / "clock"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        self.primary.environment = {"LD_PRELOAD": str(library), "CLOCK_STEP": str(path)}

    async def measure(self) -> None:
        """Record how late this program is."""
        lags = self.history.lags
        while True:
            before = time.monotonic()
            await asyncio.sleep(PULSE)
            lags.append((before, time.monotonic() - before - PULSE))
            self.upstream.settle()

    async def measure_replica(self, replica: Replica) -> None:
        """Record how late a replica without a fault is."""
        while True:
            await asyncio.sleep(5 * PULSE)
            before = time.monotonic()
            if replica.alive:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answered = await reader.read()
                    writer.close()
                    if answered and replica.alive and not self._touched(replica, before):
                        self.history.lags.append((before, time.monotonic() - before))

    def _touched(self, replica: Replica, since: float) -> bool:
        """Return whether this replica was stopped or ended since then."""
        kinds = ("stopped", "killed", "drained")
        faults = [fault for fault in self.history.faults if fault.replica == replica.name and fault.kind in kinds]
        return any(fault.end is None or fault.end >= since for fault in faults)


OPTIONS = ("--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction")


@contextlib.asynccontextmanager
async def site(
    history: History, server: Path, folder: Path, *, secondary: bool = False, clock: bool = False, workers: int = 1
) -> AsyncIterator[Site]:
    """Run everything for the block; then end the replicas, and record the keys that they leave. Logs go to `folder`."""
    here = Site(history, folder)
    variables = {
        "OPENAI_API_KEY": "none",
        "WS_CHAT_RETENTION": f"{history.retention:g}",
        "WS_CHAT_RESUME_WINDOW": f"{history.resume_window:g}",
        "WS_CHAT_DRAIN_TIMEOUT": str(DRAIN_TIMEOUT),
        "WS_CHAT_MAX_GENERATIONS_PER_CONNECTION": "10000",
    }
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(here.upstream)
        await here.start_redis(secondary=secondary, clock=clock)
        stack.push_async_callback(_end_redis, here)
        for name in REPLICAS:
            own = {**variables, "OPENAI_BASE_URL": here.upstream.url_for(name)}
            replica = Replica(name, server, here.primary.port, folder, own, workers)
            here.replicas.append(replica)
            await replica.proxy.start()
            stack.callback(replica.proxy.stop)
            stack.push_async_callback(replica.end, signal.SIGKILL)
        await asyncio.gather(*(replica.start() for replica in here.replicas))
        history.start = time.monotonic()
        measuring = [asyncio.create_task(here.measure())]
        measuring += [asyncio.create_task(here.measure_replica(replica)) for replica in here.replicas]
        try:
            yield here
            here.upstream.settle()
            await _look_at_what_is_left(here)
        finally:
            for task in measuring:
                task.cancel()
            await asyncio.gather(*measuring, return_exceptions=True)


async def _look_at_what_is_left(here: Site) -> None:
    async with asyncio.TaskGroup() as group:
        for replica in here.replicas:
            group.create_task(replica.end(signal.SIGTERM))
    for replica in here.replicas:
        for line in replica.log.splitlines():
            if ("Traceback" in line or '"level":"error"' in line) and CLIENT_GONE not in line:
                here.history.crashes.append(f"{replica.name}: {line}")
    async with here.redis() as redis:
        async for key in redis.scan_iter(count=1000):
            left = await redis.pttl(key)
            if left != -2:
                here.history.left[key.decode()] = None if left == -1 else left / 1000


async def _end_redis(here: Site) -> None:
    for server in (here.primary, here.secondary):
        if server:
            await server.remove()
    if here.replication:
        here.replication.stop()
