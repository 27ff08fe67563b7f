"""One HTTP request and its response: the parts that both protocols share (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

from starlette.responses import Response

from ws_chat.protocol.errors import DRAINING, ChatError
from ws_chat.protocol.frames import Failed, GoAway, Pong
from ws_chat.relay.access import COUNTED_SIZE
from ws_chat.server.chat.sender import AwaitedSender, DirectSender, DirectWriter, direct_writer
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.access import Caller
    from ws_chat.relay.reader import Reader
    from ws_chat.relay.relay import Relay
    from ws_chat.server.chat.sender import ConnectionSender
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import GenerationKey, Log

PING_INTERVAL: Final = 15.0
"""Seconds of silence after which a comment line is sent, so that proxies do not close the connection."""

DISCARD_TIMEOUT: Final = 2.0
"""Seconds for which the rest of a body that is too large is read before it is refused."""
DISCARD_LIMIT: Final = 4
"""The most bytes that are read of such a body, as a multiple of the largest accepted one."""
GOAWAY: Final = GoAway(0, move=True)
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class _HTTPWriter(DirectWriter, Protocol):
    """The DirectWriter of an HTTP connection."""

    def hold(self) -> None:
        """Hold what is written of the response until `release`. A terminal frame is held without a call."""

    def release(self) -> None:
        """Write what is held."""


class Format(ABC):
    """Encodes frames as events. `last` is the time of the last one, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    @abstractmethod
    def encode(self, frame: Any) -> bytes:
        """Return a frame's event, or no bytes for a frame that this format leaves out."""


class HTTPEndpoint(ABC):
    """Serves the HTTP requests of a protocol, as an ASGI application. Bodies above `max_body_bytes` are `too_large`."""

    transport: ClassVar[str]

    def __init__(
        self, relay: Relay, connections: Connections, *, max_body_bytes: int, new_id: Callable[[], str]
    ) -> None:
        self.relay = relay
        self.connections = connections
        self.max_body_bytes = max_body_bytes
        self.new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises ChatError before the response has started."""
        try:
            caller = await self.connections.caller(scope, self.transport)
            await self.serve(caller, scope, receive, send)
        except ChatError as error:
            self.connections.refuse(self.transport, error)
            raise

    @abstractmethod
    async def serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that is authenticated, but does not count as a connection yet."""


class Exchange:
    """One request, and its response."""

    def __init__(
        self, endpoint: HTTPEndpoint, connection: Connection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.endpoint = endpoint
        self.relay = endpoint.relay
        self.caller = connection.caller
        self.scope = scope
        self._connection = connection
        self._receive = receive
        self._send = send
        self._size = 0  # of the body

    async def body(self) -> bytes:
        limit = self.endpoint.max_body_bytes
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ChatError("invalid_request", "The request was cut off.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                if more:
                    await self._discard_body(DISCARD_LIMIT * limit - len(body))
                raise ChatError("too_large", f"A request has at most {limit} bytes.", limit="max_frame_bytes")
        self._size = len(body)
        if self._size > COUNTED_SIZE:
            self.relay.throttle.check(self.caller)
        return bytes(body)

    async def counted(self, work: Awaitable[None]) -> None:
        """Await `work`, which starts a generation. A refusal counts as a request that starts none."""
        try:
            await work
        except ChatError as error:
            raise await self.relay.count_refusal(self.caller, error, self._size) from None

    async def _discard_body(self, limit: int) -> None:
        """Read at most `limit` bytes of the rest of a refused body.

        Closing a connection with unread bytes resets it, and the client, or a proxy, may lose the response (RFC 9112,
        section 9.6).
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_TIMEOUT):
                while limit > 0:
                    message = await self._receive()
                    limit -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def answer(self, response: Response) -> None:
        await response(self.scope, self._receive, self._send)

    async def stream(
        self,
        key: GenerationKey,
        log: Log,
        form: Format,
        read: Callable[[ConnectionSender], Reader],
        *,
        wait: bool = True,
    ) -> None:
        """Answer with the events of a reader of `log`: `read` returns one for a sender, which it closes at its end.

        With `wait`, the status line waits for the first delta, so that a failure before it has a status of its own.
        """
        sender: ConnectionSender
        gone = None
        writer = cast("_HTTPWriter | None", direct_writer(self.scope, self._receive, self._send))
        if writer:
            sender = DirectSender(form.encode, writer)
        else:
            sender = AwaitedSender(form.encode, self._send_batch)
            # A DirectWriter reports that the client has disconnected; with other servers `receive` does.
            gone = asyncio.create_task(self._until_gone(sender))
        self._connection.sender = sender
        reader = read(sender)

        def leave_running() -> None:
            if log.terminal is None:
                reader.close()
                if sender.writable:
                    sender.write(GOAWAY)
                sender.close()

        self._connection.leave_running = leave_running
        self.relay.attach(key, reader)
        try:
            if wait:
                await _started(log, sender)
            if wait and (response := failure(log)):
                await self.answer(response)
            elif sender.ended.done() and sender.ended.result():
                raise ChatError.of(DRAINING)
            elif not sender.ended.done():
                pings = _Pings(sender, form)
                try:
                    if writer:
                        writer.hold()
                    # The sender must not write before this.
                    await self._send(
                        {"type": "http.response.start", "status": 200, "headers": stream_headers(log.start.id)}
                    )
                    sender.open()
                    reader.open()
                    if writer and not sender.ended.done():  # else the end of the response is sent with it
                        writer.release()
                    if await sender.ended:
                        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                finally:
                    if writer:
                        writer.release()
                    reader.close()
                    pings.stop()
        finally:
            self.relay.detach(self.caller, key, reader)
            if gone:
                gone.cancel()
            await sender.stop()

    async def _send_batch(self, batch: list[bytes]) -> None:
        await self._send({"type": "http.response.body", "body": b"".join(batch), "more_body": True})

    async def gone(self) -> None:
        """Wait until the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _until_gone(self, sender: ConnectionSender) -> None:
        await self.gone()
        await sender.stop()


def failure(log: Log) -> Response | None:
    """Return the response for a generation that failed before its first delta."""
    error = log.terminal.error if isinstance(log.terminal, Failed) else log.fault
    if log.last == 0 and error:
        return error_response(error, {"X-Generation-Id": log.start.id})
    return None


def stream_headers(generation_id: str) -> list[tuple[bytes, bytes]]:
    return [*_HEADERS, (b"x-generation-id", generation_id.encode())]


class _Pings:
    """Writes a comment after each PING_INTERVAL of silence. One timer, whatever the rate of frames."""

    def __init__(self, sender: ConnectionSender, form: Format) -> None:
        self._sender = sender
        self._form = form
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PING_INTERVAL, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        silence = time.monotonic() - self._form.last
        if silence >= PING_INTERVAL:
            if self._sender.writable:
                self._sender.write(Pong())
            silence = 0
        self._timer = self._loop.call_later(PING_INTERVAL - silence, self._check)


async def _started(log: Log, sender: ConnectionSender) -> None:
    """Wait for a log's first delta, its end, or the end of the connection."""
    if log.last or log.terminal or log.fault or sender.ended.done():
        return
    started = asyncio.get_running_loop().create_future()

    def wake(*_: object) -> None:
        if not started.done():
            started.set_result(None)

    sender.ended.add_done_callback(wake)
    log.watch(wake)
    try:
        await started
    finally:
        log.unwatch(wake)
        sender.ended.remove_done_callback(wake)
