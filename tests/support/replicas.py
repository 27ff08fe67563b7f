"""Replicas in processes of their own on a real Redis, and readers that go on at the next one when one breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from load.soak_mixed import check, faults
from redis.asyncio import Redis
from support.processes import Running, program, redis_server
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from ws_chat.testing import FakeOpenAI, Pause, Recorded, Reply, Wait, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

SHARD = "ws_chat:{0}:"
"""The prefix of every name in Redis."""
RETRY_INTERVAL = 0.05
"""Seconds before a reader connects again."""


WITH_WINDOWS = Path(__file__).parent / "windows"


def setting(windows: dict[str, float]) -> dict[str, str]:
    """Return the environment of a program in which constants of `ws_chat.stores` have these values."""
    return {"PYTHONPATH": str(WITH_WINDOWS), "TEST_WINDOWS": json.dumps(windows)}


async def lapse(redis: Redis, living: set[str]) -> set[str]:
    """Let the leases of all replicas but these lapse, as they do in time; return the names of those that were dead."""
    dead = {name.decode() for name in await redis.smembers(f"{SHARD}replicas")} - living
    for name in dead:
        await redis.delete(f"{SHARD}lease:{name}")
    return dead


class Counting(FakeOpenAI):
    """An upstream that counts when the message says to what number, how many a second, and whether to wait for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    def record(self, request: Recorded) -> Reply:
        super().record(request)
        asked = request.body["messages"][0]["content"]
        if "/" not in asked:
            return self.default
        count, rate = map(int, asked.removesuffix("/wait").split("/"))
        events = text(*map(number, range(1, count + 1)))
        steps = [step for event in events for step in (event, Pause(1 / rate))]
        if asked.endswith("/wait"):
            end = 2 * (count + 1)  # after the role and the deltas
            steps[end:end] = [Wait(self.go)]
        return Reply(steps)


def number(of: int) -> str:
    """Return what is said at a place: joined, a text shows by itself what it lacks."""
    return f"{of} \u3084\u3063\u307b\n"


def counted(count: int) -> str:
    """Return the whole text of an answer."""
    return "".join(map(number, range(1, count + 1)))


class Cluster:
    """Running replicas. `ports` has the port of each; those with several workers share one."""

    def __init__(self, redis: Redis, replicas: list[Running], ports: list[int], workers: int, *, held: bool) -> None:
        """Take replicas that run. `held`: their leases do not lapse by themselves."""
        self.workers = workers
        self.redis = redis
        self.replicas = replicas
        self.ports = ports
        self.held = held

    async def names(self) -> set[str]:
        """Return the replicas that Redis knows."""
        return {name.decode() for name in await self.redis.smembers(f"{SHARD}replicas")}

    async def silent(self, names: set[str]) -> str:
        """Return the one of these replicas that does not renew its lease, where leases do not lapse by themselves."""
        for name in names:
            await self.redis.pexpire(f"{SHARD}lease:{name}", HELD["redis.lease.LEASE"] // 2)

        async def silent() -> list[str]:
            left = {name: await self.redis.pttl(f"{SHARD}lease:{name}") for name in names}
            quiet = [name for name in names if left[name] <= HELD["redis.lease.LEASE"] // 2]
            return quiet if len(quiet) == 1 else []

        (name,) = await until(silent, "all replicas but one to renew their leases")
        return name

    async def journalled(self, replica: str) -> dict[str, dict[int, str]]:
        """Return what a replica's journal holds of each generation, by seq, read as plainly as can be."""
        said: dict[str, dict[int, str]] = {}
        for _, fields in await self.redis.xrange(f"{SHARD}journal:{replica}"):
            for key, (first, deltas, *_) in json.loads(fields[b"entry"]).items():
                pieces = {first + place: delta.get("content", "") for place, delta in enumerate(deltas)}
                said.setdefault(key.rpartition("/")[2], {}).update(pieces)
        return said

    async def left(self) -> list[str]:
        """Return the keys that are there besides those of the replicas that live, and what has ended if it is kept."""
        own = {f"{SHARD}{kind}:{name}" for kind in ("lease", "journal", "inbox") for name in await self.names()}
        others = sorted({key.decode() for key in await self.redis.keys()} - own - {f"{SHARD}replicas"})
        if not self.held:
            return others
        ended = [":named/" in key and await self.redis.hexists(key, "terminal") for key in others]
        return [key for key, kept in zip(others, ended, strict=True) if not kept]


HELD: dict[str, Any] = {
    "redis.connection.PATIENCE": 600,
    "redis.connection.STEADY": 0,
    "redis.lease.LEASE": 600_000,
    "redis.shard.AWAY": 600,
    "redis.shard.RENEWAL": 0.2,
    "redis.journal.END_PATIENCE": 600,
}
"""Windows with which no replica is taken for dead because the machine is slow; `Cluster.silent` finds one that is."""


@contextlib.asynccontextmanager
async def cluster(
    base_url: str, replicas: int, workers: int = 1, *, held: bool = False, **settings: str
) -> AsyncIterator[Cluster]:
    """Run replicas until the block ends. A fault in the log of any of them ends it, too."""
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(redis_server())
        redis = await stack.enter_async_context(Redis.from_url(shared.url))
        variables = {
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": "none",
            "WS_CHAT_REDIS_URL": shared.url,
            "WS_CHAT_DRAIN_TIMEOUT": "0",
            **settings,
            **(setting(HELD) if held else {}),
        }
        command = ("ws-chat", "serve", "--port", "0", "--workers", str(workers))
        started = [stack.enter_async_context(program(*command, **variables)) for _ in range(replicas)]
        running = [await starting for starting in started]
        ports = [await replica.port() for replica in running]
        for replica in running:
            await replica.until_logged("(?s)" + "Application startup complete.*" * workers)
        async with asyncio.TaskGroup() as watching:
            tasks = [watching.create_task(faults(replica)) for replica in running]
            yield Cluster(redis, running, ports, workers, held=held)
            for task in tasks:
                task.cancel()


class Reading:
    """What a reader sees of one generation, over as many connections as it takes."""

    def __init__(self, generation_id: str, asks: str | None, ports: Iterable[int]) -> None:
        """Ask with this message, or follow; each connection goes to the next port."""
        self.id = generation_id
        self.seq = 0
        self.epoch: str | None = None
        self.text = ""
        self.arguments = ""
        self.end: dict[str, Any] | None = None
        """The terminal frame, or the refusal to go on."""
        self.ended_at = 0.0
        self.begun = asyncio.Event()
        """Set with the first token, or the end."""
        self.refusals: list[str] = []
        self._ports: Iterator[int] = itertools.cycle(ports)
        self._asks = asks and {"id": generation_id, "messages": [{"role": "user", "content": asks}]}
        self._started = False
        self._back = False

    @property
    def lost(self) -> bool:
        """Whether the terminal frame was the error `generation_lost`."""
        return self.end is not None and self.end["type"] == "error" and self.end["error"]["code"] == "generation_lost"

    async def read(self, transport: str) -> None:
        """Read to the end, over `websocket` or `sse`."""
        once = self._over_websocket if transport == "websocket" else self._over_sse
        while self.end is None:
            with contextlib.suppress(OSError, WebSocketException, httpx.HTTPError):
                await once(next(self._ports))
            if self.end is None:
                await asyncio.sleep(RETRY_INTERVAL)

    def _take(self, frame: dict[str, Any]) -> None:
        check(frame.get("id", self.id) == self.id and self.end is None, f"this frame belongs here: {frame}")
        match frame["type"]:
            case "start":
                check(frame["seq"] == self.seq - self._back, f"it starts after {self.seq}: {frame}")
                check(self.epoch in (None, frame["epoch"]), f"it is of the generation {self.epoch}: {frame}")
                self.epoch = frame["epoch"]
                self._started = True
            case "token":
                check(frame["seq"] > self.seq, f"seq rises from {self.seq}: {frame}")
                self.seq = frame["seq"]
                self.text += frame.get("content", "")
                self.arguments += "".join(call["function"]["arguments"] for call in frame.get("tool_calls", []))
                self.begun.set()
            case "error" if "seq" not in frame and frame["error"]["code"] == "overloaded":
                self.refusals.append(frame["error"]["message"])  # which is to be tried again
            case _:
                self.end = frame
                self.begun.set()
                self.ended_at = asyncio.get_running_loop().time()

    async def _over_websocket(self, port: int) -> None:
        async with connect(f"ws://127.0.0.1:{port}/v1/chat/ws", max_size=None, open_timeout=None) as socket:
            following = self._started or self._asks is None
            resume = {"type": "resume", "id": self.id, "after": self.seq} | (
                {"epoch": self.epoch} if self.epoch else {}
            )
            await socket.send(json.dumps(resume if following else self._asks))
            async for message in socket:
                self._take(json.loads(message))
                if self.end or self.refusals:
                    return

    async def _over_sse(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}/v1/chat/stream"
        request: dict[str, Any] = {"method": "POST", "url": f"{url}?format=frames", "json": self._asks}
        if self._started or self._asks is None:
            seq = self.seq - self._back
            headers = {"Last-Event-ID": f"{seq}-{self.epoch}" if self.epoch else str(seq)}
            request = {"method": "GET", "url": f"{url}/{self.id}?format=frames", "headers": headers}
        async with (
            httpx.AsyncClient(timeout=None, verify=False, trust_env=False) as client,
            client.stream(**request) as response,
        ):
            if response.status_code == 204:
                self._back = True
                return  # it is at the end, which stands there to be read
            if response.status_code != 200:
                self._take({"type": "error", **json.loads(await response.aread())})
                return
            data = ""
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                elif not line and data:  # an event that was cut off is none
                    self._take(json.loads(data))
                    data = ""
