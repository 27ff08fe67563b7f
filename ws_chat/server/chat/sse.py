"""The chat protocol over SSE: one request, one answer as `text/event-stream` (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from ws_chat.protocol.errors import DRAINING, ChatError
from ws_chat.protocol.frames import FROM_START, Chat, Failed, GoAway, InvalidFrameError, Pong, Position, decode
from ws_chat.relay.access import COUNTED_SIZE
from ws_chat.relay.reader import Reader
from ws_chat.relay.relay import is_lost
from ws_chat.server.chat.sender import AwaitedSender, DirectSender, direct_writer
from ws_chat.server.chat.sse_format import FORMATS, format_named
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.relay import Relay
    from ws_chat.server.chat.sender import ConnectionSender
    from ws_chat.server.chat.sse_format import Format
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import GenerationKey, Log

TRANSPORT: Final = "sse"
PING_INTERVAL: Final = 15.0
"""Seconds of silence after which a comment line is sent, so that proxies do not close the connection."""

DISCARD_TIMEOUT: Final = 2.0
"""Seconds in which the rest of a body that is too large is read before it is refused."""
DISCARD_LIMIT: Final = 4
"""Bytes that are read of it at most, as a multiple of the largest accepted body."""
GOAWAY: Final = GoAway(0, move=True)
_NO_QUERY: Final = QueryParams()
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class SSEEndpoint:
    """Serves generations as event streams, as an ASGI application. Bodies above `max_body_bytes` are `too_large`."""

    def __init__(
        self, relay: Relay, connections: Connections, *, max_body_bytes: int, new_id: Callable[[], str]
    ) -> None:
        self.relay = relay
        self._connections = connections
        self.max_body_bytes = max_body_bytes
        self.new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises ChatError when there is nothing to stream."""
        try:
            caller = await self._connections.caller(scope, TRANSPORT)
            if scope["method"] == "DELETE":  # also while draining or at a limit: it frees a place
                await self.relay.cancel(caller, scope["path_params"]["id"])
                await Response(status_code=204)(scope, receive, send)
                return
            with self._connections.admit(caller) as connection:
                exchange = _Exchange(self, connection, scope, receive, send)
                if scope["method"] != "POST":
                    await exchange.follow()
                    return
                try:
                    await exchange.start()
                except ChatError as error:
                    raise await self.relay.count_refusal(caller, error, exchange.size) from None
        except ChatError as error:
            self._connections.refuse(TRANSPORT, error)
            raise


class _Exchange:
    """One request, and the stream that answers it."""

    def __init__(
        self, endpoint: SSEEndpoint, connection: Connection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._endpoint = endpoint
        self._relay = endpoint.relay
        self._connection = connection
        self._caller = connection.caller
        self._scope = scope
        self._receive = receive
        self._send = send
        self.size = 0
        """Bytes of the request's body."""
        self._query = QueryParams(scope["query_string"]) if scope["query_string"] else _NO_QUERY
        self._format = self._query.get("format", "text")
        if self._format not in FORMATS:
            raise ChatError("invalid_request", '"format" must be "text" or "frames".', param="format")

    async def start(self) -> None:
        """Start a generation and stream it; a named one that is sent again, from after the position of the header."""
        body = await self._body()
        self.size = len(body)
        if self.size > COUNTED_SIZE:
            self._relay.throttle.check(self._caller)
        chat = decode(body)
        del body
        if not isinstance(chat, Chat):
            raise InvalidFrameError("invalid_request", "Only a chat can be sent here.", param="type")
        named = chat.id is not None
        generation_id = chat.id or self._endpoint.new_id()
        key = self._caller.key(generation_id, named=named)
        position = self._position() if named else FROM_START
        log = await self._relay.start(self._caller, generation_id, chat, position)
        try:
            await self._stream(key, log, position.seq)
        finally:
            if not named:
                self._relay.release(key)

    async def follow(self) -> None:
        """Stream a named generation from after a position."""
        generation_id = self._scope["path_params"]["id"]
        position = self._position(self._query.get("after", "0"))
        log = await self._relay.find(self._caller, generation_id, position)
        if log.terminal and position.seq == log.terminal.seq and not is_lost(log):
            # Nothing more can come, and only this status keeps an EventSource from asking again.
            await self._answer(Response(status_code=204))
        elif self._scope["method"] == "HEAD":
            await self._answer(_failure(log) or _Head(log.start.id))
        else:
            await self._stream(self._caller.key(generation_id, named=True), log, position.seq)

    def _position(self, default: str = "0") -> Position:
        """Return the position to read after: an EventSource gives it in a header, which wins over all else."""
        return Position.of(Headers(scope=self._scope).get("last-event-id") or default)

    async def _body(self) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ChatError("invalid_request", "The request was cut off.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._endpoint.max_body_bytes:
                if more:
                    await self._discard_body(DISCARD_LIMIT * self._endpoint.max_body_bytes - len(body))
                fault = f"A request has at most {self._endpoint.max_body_bytes} bytes."
                raise ChatError("too_large", fault, limit="max_frame_bytes")
        return bytes(body)

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

    async def _stream(self, key: GenerationKey, log: Log, after: int) -> None:
        before = log.after(after - 1, 1) if after else ()
        form = format_named(self._format, log.start, named=key.named, before=before)
        sender: ConnectionSender
        gone = None
        if writer := direct_writer(self._scope, self._receive, self._send):
            sender = DirectSender(form.encode, writer)
        else:
            sender = AwaitedSender(form.encode, self._send_batch)
            # A DirectWriter reports that the client has disconnected; with other servers `receive` does.
            gone = asyncio.create_task(self._until_gone(sender))
        self._connection.sender = sender
        reader = Reader(log, after, sender, on_end=sender.close)

        def leave_running() -> None:
            if log.terminal is None:
                reader.close()
                if sender.writable:
                    sender.write(GOAWAY)
                sender.close()

        self._connection.leave_running = leave_running
        self._relay.attach(key, reader)
        try:
            await _started(log, sender)
            if failure := _failure(log):
                await self._answer(failure)
            elif sender.ended.done() and sender.ended.result():
                raise ChatError.of(DRAINING)
            elif not sender.ended.done():
                # The sender must not write before this.
                await self._send({"type": "http.response.start", "status": 200, "headers": _headers(log.start.id)})
                sender.open()
                pings = _Pings(sender, form)
                try:
                    reader.open()
                    if await sender.ended:
                        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                finally:
                    reader.close()
                    pings.stop()
        finally:
            self._relay.detach(self._caller, key, reader)
            if gone:
                gone.cancel()
            await sender.stop()

    async def _answer(self, response: Response) -> None:
        await response(self._scope, self._receive, self._send)

    async def _send_batch(self, batch: list[bytes]) -> None:
        await self._send({"type": "http.response.body", "body": b"".join(batch), "more_body": True})

    async def _until_gone(self, sender: ConnectionSender) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        await sender.stop()


def _failure(log: Log) -> Response | None:
    """Return the response for a generation that failed before its first delta."""
    error = log.terminal.error if isinstance(log.terminal, Failed) else log.fault
    if log.last == 0 and error:
        return error_response(error, {"X-Generation-Id": log.start.id})
    return None


class _Head(Response):
    """The response to HEAD: the headers of the stream."""

    def __init__(self, generation_id: str) -> None:
        super().__init__()
        self.raw_headers = _headers(generation_id)


def _headers(generation_id: str) -> list[tuple[bytes, bytes]]:
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
    started = asyncio.Event()

    def wake(*_: object) -> None:
        started.set()

    sender.ended.add_done_callback(wake)
    log.watch(wake)
    try:
        if log.last == 0 and log.terminal is None and log.fault is None and not sender.ended.done():
            await started.wait()
    finally:
        log.unwatch(wake)
