"""Readers that record everything that they send and receive. They resume on any replica until they have the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
from load.chaos.history import Event, Reader
from support.dropping import dropping
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from ws_chat.client import ClientError, ReplyError
from ws_chat.client import connect as connect_client

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from load.chaos.site import Replica, Site
    from websockets.asyncio.client import ClientConnection

PATH = "/v1/chat/stream"
PAUSE = 0.1
"""Seconds before a reader connects again."""
LONGEST_PAUSE = 1.0
LEFT_AFTER = 3.0
"""Seconds after which a reader leaves a suspended replica, as a client or a balancer does without an answer."""
BEYOND = 1 << 31
"""A seq that no answer has."""
POLL_INTERVAL = 0.25
BROKEN = (OSError, EOFError, WebSocketException, InvalidHandshake)
RETRYABLE = ("overloaded", "draining")
decode = msgspec.json.decode


class Reading:
    """One reader of a generation: it sends the chat `ask`, or follows. `hop`: mean seconds until it reconnects elsewhere."""

    transport = ""

    def __init__(
        self,
        site: Site,
        record: Reader,
        chance: random.Random,
        *,
        ask: dict[str, Any] | None = None,
        hop: float | None = None,
        after: int = 0,
        epoch: str | None = None,
    ) -> None:
        self._site = site
        self.record = record
        self._chance = chance
        self._ask = ask
        self._hop = hop
        self.seq = after
        self.epoch = epoch
        self.began = asyncio.Event()
        """Set at the first `start` frame, or at the end."""
        self.ended = False
        self.refusal: str | None = None
        """The error code after which it does not try again."""
        self._pause = PAUSE
        self._heard = False
        site.history.readers.append(record)

    async def run(self) -> None:
        """Read to the end."""
        while not self.ended:
            replica = self._choose()
            if replica:
                await self._visit(replica)
            if not self.ended:
                await asyncio.sleep(self._pause)
        self.began.set()

    def leave(self) -> None:
        """Record that it stops reading by its own choice."""
        self.note("over", self.record.events[-1].replica if self.record.events else "")
        self.ended = True
        self.began.set()

    def note(self, kind: Any, replica: str, **data: Any) -> None:
        self.record.events.append(Event(time.monotonic(), kind, replica, data))

    def _choose(self) -> Replica | None:
        alive = [replica for replica in self._site.replicas if replica.alive]
        return self._chance.choice(alive) if alive else None

    async def _visit(self, replica: Replica) -> None:
        """Read over one connection, until it breaks, or until it is time to reconnect or to leave a suspended replica."""
        self._pause, self._heard = PAUSE, False
        task = asyncio.create_task(self._read(replica))
        left_at: float | None = None
        hop = None if self._hop is None else self._chance.expovariate(1 / self._hop)
        try:
            while not (await asyncio.wait({task}, timeout=POLL_INTERVAL))[0]:
                now = time.monotonic()
                if not self._heard and not replica.stopped:
                    left_at = None  # no answer yet: wait however long it takes
                elif left_at is None:
                    left_at = now + LEFT_AFTER if replica.stopped else None if hop is None else now + hop
                elif now > left_at:
                    break
        finally:
            left = not task.done()
            if left:
                self.note("closed", replica.name)  # now, because a closing handshake takes time
                task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            if not left:
                self.note("closed", replica.name)
        error = results[0]
        if isinstance(error, Exception) and not isinstance(error, BROKEN):
            raise error

    async def _read(self, replica: Replica) -> None:
        raise NotImplementedError

    def _opening(self, replica: Replica) -> dict[str, Any]:
        """Return the first frame to send on a connection, and record it."""
        if self._ask and not self.epoch:
            self.note("send", replica.name, what="chat", previous=self._ask.get("previous_id"))
            return self._ask
        self.note("send", replica.name, what="resume", after=self.seq, epoch=self.epoch)
        return {"type": "resume", "id": self.record.id, "after": self.seq} | (
            {"epoch": self.epoch} if self.epoch else {}
        )

    def _take(self, replica: Replica, frame: dict[str, Any]) -> bool:
        """Record a frame. Return whether the connection can be closed."""
        self._heard = True
        self.note("frame", replica.name, **frame)
        match frame["type"]:
            case "start":
                self.epoch = frame.get("epoch")
                self.began.set()
                return False
            case "token":
                self.seq = frame["seq"]
                return False
            case "error" if "seq" not in frame:
                error = frame["error"]
                if error["code"] in RETRYABLE:
                    self._pause = min(LONGEST_PAUSE, error.get("retry_after") or 3 * PAUSE)
                    return True
                self.refusal = error["code"]
        self.ended = True
        return True


class WebSocketReading(Reading):
    """Reads over WebSockets, on which it also sends pings."""

    transport = "websocket"

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._pinging = Pinging(self._site, f"ping {self.record.name}")

    async def _read(self, replica: Replica) -> None:
        opening = self._opening(replica)
        async with _socket(replica) as socket:
            await socket.send(json.dumps(opening))
            pinging = self._pinging.start(replica, socket)
            try:
                async for message in socket:
                    frame = decode(message)
                    if frame["type"] == "pong":
                        self._pinging.answered(replica)
                    elif frame["type"] != "goaway" and self._take(replica, frame):
                        return
            finally:
                pinging.cancel()
                self._pinging.note("closed", replica)


class InterruptingReading(WebSocketReading):
    """Continues from a running generation, which interrupts it. `interrupted`: a record for that generation."""

    def __init__(self, *given: Any, interrupted: Reader, **more: Any) -> None:
        super().__init__(*given, **more)
        self._interrupted = interrupted

    def note(self, kind: Any, replica: str, **data: Any) -> None:
        super().note(kind, replica, **data)
        event = Event(time.monotonic(), "closed", replica)
        if kind == "send" and data["what"] == "chat":
            event = Event(event.time, "send", replica, {"what": "cancel"})
        elif kind == "frame" and data["type"] == "start" and not self.epoch:
            event = Event(event.time, "frame", replica, {"type": "status", "status": 204})
        self._interrupted.events.append(event)


class SSEReading(Reading):
    """Reads event streams in the frames format."""

    transport = "sse"

    async def _read(self, replica: Replica) -> None:
        opening = self._opening(replica)
        method, path, body, headers = "GET", f"{PATH}/{self.record.id}?format=frames", b"", {}
        if opening is not self._ask:
            headers["Last-Event-ID"] = f"{self.seq}-{self.epoch}" if self.epoch else str(self.seq)
        # After a disconnect some clients follow, others repeat their POST with the header.
        if opening is self._ask or (self._ask and self._chance.random() < 0.5):
            method, path, body = "POST", f"{PATH}?format=frames", json.dumps(self._ask).encode()
        async with http(replica.port, method, path, body, **headers) as response:
            async for frame in response.frames():
                if self._take(replica, frame):
                    return


class UnnamedReading(SSEReading):
    """Sends a chat without an id, over one connection."""

    async def _visit(self, replica: Replica) -> None:
        await super()._visit(replica)
        if not self.ended:
            self.leave()

    def _opening(self, replica: Replica) -> dict[str, Any]:
        assert self._ask
        self.note("send", replica.name, what="unnamed chat")
        return self._ask


class ClientReading(Reading):
    """Reads with the Python client, over connections that break at random bytes and reconnect to the next replica."""

    transport = "client"

    async def run(self) -> None:
        assert self._ask
        ports = [replica.port for replica in self._site.replicas]
        self._chance.shuffle(ports)
        async with dropping(ports, lambda: 300 + int(self._chance.expovariate(1 / 4000))) as proxy:
            self.note("send", "client", what="chat")
            async with connect_client(proxy.url, patience=40) as client:
                reply = client.ask(self._ask["messages"], request_id=self.record.id)
                try:
                    async for frame in reply:
                        if not self.began.is_set():
                            self.note("frame", "client", type="start", seq=0, epoch=reply.epoch)
                            self.began.set()
                        self.note("frame", "client", **{"type": "token", **frame})
                except ReplyError as error:
                    # `draining` must be the generation's end here: the client would have retried a refusal.
                    end = {"seq": None} if error.code == "draining" else {}
                    self.note("frame", "client", type="error", error={"code": error.code}, **end)
                    self.refusal = error.code
                except ClientError as error:
                    self.note("closed", "client", error=str(error))
                else:
                    self.note("frame", "client", type="done", status=reply.status, seq=reply.seq)
        self.ended = True
        self.began.set()


class Sockets:
    """EACH WebSockets to every replica, with many readers on each, but no two of one generation."""

    EACH = 4

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], asyncio.Task[Shared]] = {}

    async def to(self, replica: Replica, chance: random.Random) -> Shared:
        """Return a socket to a replica; open it if it is not open."""
        key = (replica.port, chance.randrange(self.EACH))
        found = self._open.get(key)
        if found is None or (found.done() and (found.exception() or found.result().closed)):
            found = self._open[key] = asyncio.create_task(Shared.open(replica))
        return await asyncio.shield(found)


class Shared:
    """A WebSocket that carries many readers."""

    def __init__(self, replica: Replica, socket: ClientConnection) -> None:
        self._replica = replica
        self._socket = socket
        self._carried: dict[str, tuple[SharedReading, asyncio.Future[None]]] = {}
        self._receiving = asyncio.create_task(self._receive())

    @classmethod
    async def open(cls, replica: Replica) -> Shared:
        return cls(replica, await _socket(replica))

    @property
    def closed(self) -> bool:
        return self._receiving.done()

    async def carry(self, reading: SharedReading, opening: dict[str, Any]) -> None:
        """Send a reader's frame; return when the reader needs the socket no longer, or the socket is closed."""
        done = asyncio.get_running_loop().create_future()
        self._carried[reading.record.id] = (reading, done)
        await self._socket.send(json.dumps(opening))
        if self.closed:
            return
        await done

    async def _receive(self) -> None:
        try:
            async for message in self._socket:
                frame = decode(message)
                reading, done = self._carried.get(frame.get("id", ""), (None, None))
                if reading and done and reading._take(self._replica, frame):
                    del self._carried[reading.record.id]
                    done.set_result(None)
        except WebSocketException:
            pass
        finally:
            for _, done in self._carried.values():
                done.cancel() if done.done() else done.set_result(None)


class SharedReading(Reading):
    """Reads over WebSockets that it shares with other readers."""

    transport = "websocket"

    def __init__(self, *given: Any, sockets: Sockets, **more: Any) -> None:
        super().__init__(*given, **more)
        self._sockets = sockets

    async def _visit(self, replica: Replica) -> None:
        self._pause = PAUSE
        opening = self._opening(replica)
        with contextlib.suppress(*BROKEN):
            socket = await self._sockets.to(replica, self._chance)
            await socket.carry(self, opening)
        self.note("closed", replica.name)


class Cancelling(Reading):
    """Cancels a generation; repeats that until it is acknowledged."""

    transport = "cancel"

    async def _read(self, replica: Replica) -> None:
        self.note("send", replica.name, what="cancel")
        if self._chance.random() < 0.5:
            async with http(replica.port, "DELETE", f"{PATH}/{self.record.id}") as response:
                async for frame in response.frames():
                    self._take(replica, frame)
            return
        async with _socket(replica) as socket:
            await socket.send(json.dumps({"type": "cancel", "id": self.record.id}))
            # Only a refused cancel is answered. Frames with one id are answered in order, so an answer to this resume,
            # whose position is past any end, shows that the cancel was not refused.
            await socket.send(json.dumps({"type": "resume", "id": self.record.id, "after": BEYOND}))
            async for message in socket:
                frame = decode(message)
                if frame["type"] != "error" or "seq" in frame or frame["error"]["code"] == "invalid_request":
                    frame = {"type": "status", "status": 204}
                self._take(replica, frame)
                return


class Pinging:
    """Sends a ping over a socket every second, and records the pongs."""

    def __init__(self, site: Site, name: str) -> None:
        self._record = Reader(name, "", 0)
        site.history.readers.append(self._record)

    def start(self, replica: Replica, socket: ClientConnection) -> asyncio.Task[None]:
        return asyncio.create_task(self._ping(replica, socket))

    def answered(self, replica: Replica) -> None:
        self.note("frame", replica, type="pong")

    def note(self, kind: Any, replica: Replica, **data: Any) -> None:
        self._record.events.append(Event(time.monotonic(), kind, replica.name, data))

    async def _ping(self, replica: Replica, socket: ClientConnection) -> None:
        with contextlib.suppress(*BROKEN):
            while True:
                self.note("send", replica, what="ping")
                await socket.send('{"type":"ping"}')
                await asyncio.sleep(1)


def _socket(replica: Replica) -> Any:
    url = f"ws://127.0.0.1:{replica.port}/v1/chat/ws"
    return connect(
        url, compression=None, max_size=None, open_timeout=None, ping_interval=None, close_timeout=0.5, proxy=None
    )


class Response:
    """A minimal HTTP response: httpx takes 25 ms of CPU to create a client."""

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self._headers = headers
        self._reader = reader

    async def frames(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the frames of an event stream, or a single one for anything else."""
        if self.status == 200:
            rest = b""
            async for data in self._chunks():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    for line in event.split(b"\n"):
                        if line.startswith(b"data: "):
                            yield decode(line[6:])
        elif self.status == 204:
            yield {"type": "status", "status": 204}
        else:
            body = await self._reader.readexactly(int(self._headers["content-length"]))
            yield {"type": "error", **decode(body)}

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]


@contextlib.asynccontextmanager
async def http(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> AsyncIterator[Response]:
    """Send a request over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        status, *given = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(":") for line in given if line)
        yield Response(int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, reader)
    finally:
        writer.transport.abort()
