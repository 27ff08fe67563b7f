"""The SSE door: one request, one answer as `text/event-stream` (WHATWG HTML, section "Server-sent events")."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import Chat, Failed, InvalidFrameError, Pong, decode
from ws_chat.relay.reader import Reader
from ws_chat.relay.session import Session, StartGeneration
from ws_chat.server.chat.sender import AwaitedOutlet, Encoding, outlet
from ws_chat.server.chat.sse_format import FORMATS, format_named
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.relay import Relay
    from ws_chat.server.chat.sender import Outlet
    from ws_chat.server.chat.sse_format import Format
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import Log

DOOR: Final = "sse"
PING_INTERVAL: Final = 15.0
"""Seconds of silence after which a comment line keeps proxies from closing the connection."""

MAX_DIGITS: Final = 18
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _Exchange(NamedTuple):
    """One request and its response, as ASGI gives them."""

    scope: Scope
    receive: Receive
    send: Send

    async def answer(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def send_batch(self, batch: list[bytes]) -> None:
        await self.send({"type": "http.response.body", "body": b"".join(batch), "more_body": True})


class _Reading(NamedTuple):
    """What is read, from where, and in which format."""

    log: Log
    key: str
    after: int
    form: Format


class SSEDoor:
    """Serves generations as event streams. Bodies above `max_body_bytes` are `too_large`."""

    def __init__(
        self, relay: Relay, connections: Connections, *, max_body_bytes: int, new_id: Callable[[], str]
    ) -> None:
        self._relay = relay
        self._connections = connections
        self._max_body_bytes = max_body_bytes
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as an ASGI application. Raises ChatError when there is nothing to stream."""
        exchange = _Exchange(scope, receive, send)
        try:
            caller = await self._connections.caller(scope, DOOR)
            if scope["method"] == "DELETE":  # welcome also where nothing new is: it makes room
                await self._relay.cancel(caller, scope["path_params"]["id"])
                await exchange.answer(Response(status_code=204))
                return
            with self._connections.admit(caller) as connection:
                serve = self._start if scope["method"] == "POST" else self._follow
                await serve(connection, exchange)
        except ChatError as error:
            self._connections.refuse(DOOR, error)
            raise

    async def _start(self, connection: Connection, exchange: _Exchange) -> None:
        caller = connection.caller
        form_name = _form_name(exchange.scope)
        start = await self._chat(exchange.receive)
        named = start.chat.id is not None
        key = caller.key(start.id, named=named)
        log = await self._relay.start(caller, start.id, start.chat)
        try:
            await self._serve(connection, _Reading(log, key, 0, format_named(form_name, event_ids=named)), exchange)
        finally:
            if not named:
                self._relay.release(key)

    async def _follow(self, connection: Connection, exchange: _Exchange) -> None:
        caller = connection.caller
        generation_id = exchange.scope["path_params"]["id"]
        form_name = _form_name(exchange.scope)
        after = _position(exchange.scope)
        log = await self._relay.find(caller, generation_id, after)
        form = format_named(form_name, event_ids=True, before=log.after(after - 1, 1) if after else ())
        if log.terminal and after == log.terminal.seq:
            # Nothing more can come, and only this status keeps an EventSource from asking again.
            await exchange.answer(Response(status_code=204))
        elif exchange.scope["method"] == "HEAD":
            await exchange.answer(_failure(log) or _Heading(log.start.id))
        else:
            key = caller.key(generation_id, named=True)
            await self._serve(connection, _Reading(log, key, after, form), exchange)

    async def _serve(self, connection: Connection, reading: _Reading, exchange: _Exchange) -> None:
        log, key, after, form = reading
        way_out = outlet(Encoding(form.frame, form.token), exchange.scope, exchange.send_batch)
        connection.outlet = way_out
        # Where the wire does not tell that the client has gone away, asking the server does.
        gone = asyncio.create_task(_gone(exchange.receive, way_out)) if isinstance(way_out, AwaitedOutlet) else None
        reader = Reader(log, after, way_out, on_end=way_out.close)
        self._relay.attach(key, reader)
        try:
            await _begun(log, way_out)
            if failure := _failure(log):
                await exchange.answer(failure)
            elif not way_out.ended.done():
                await _stream(log.start.id, reader, way_out, form, exchange.send)
        finally:
            self._relay.detach(connection.caller, key, reader)
            if gone:
                gone.cancel()
            await way_out.stop()

    async def _chat(self, receive: Receive) -> StartGeneration:
        frame = decode(await self._body(receive))
        if not isinstance(frame, Chat):
            raise InvalidFrameError("invalid_request", "Only a chat can be sent here.", param="type")
        action = Session(limit=1, new_id=self._new_id).receive(frame)
        assert isinstance(action, StartGeneration)  # noqa: S101  (what a chat in a new session always is)
        return action

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ChatError("invalid_request", "The request was cut off.")
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise ChatError("too_large", f"A request is at most {self._max_body_bytes} bytes.")
            more = message.get("more_body", False)
        return bytes(body)


def _query(scope: Scope) -> QueryParams:
    return QueryParams(scope["query_string"])


def _form_name(scope: Scope) -> str:
    name = _query(scope).get("format", "text")
    if name not in FORMATS:
        raise ChatError("invalid_request", '"format" is "text" or "frames".', param="format")
    return name


def _position(scope: Scope) -> int:
    """Return the seq to follow after: an EventSource says it in a header, which wins over the query."""
    position = Headers(scope=scope).get("last-event-id") or _query(scope).get("after", "0")
    if not (position.isascii() and position.isdecimal() and len(position.lstrip("0")) <= MAX_DIGITS):
        raise ChatError("invalid_request", "The position is a seq: a whole number from 0.", param="after")
    return int(position)


def _failure(log: Log) -> Response | None:
    """Return the answer of a generation that failed before it said anything."""
    if log.last == 0 and isinstance(log.terminal, Failed):
        return error_response(log.terminal.error, {"X-Generation-Id": log.start.id})
    return None


class _Heading(Response):
    """The head of an answer, as its GET would have it."""

    def __init__(self, generation_id: str) -> None:
        super().__init__()
        self.raw_headers = _headers(generation_id)


def _headers(generation_id: str) -> list[tuple[bytes, bytes]]:
    return [*_HEADERS, (b"x-generation-id", generation_id.encode())]


async def _stream(generation_id: str, reader: Reader, way_out: Outlet, form: Format, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _headers(generation_id)})
    pings = _Pings(way_out, form)
    try:
        reader.open()
        if await way_out.ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        reader.close()
        pings.stop()


class _Pings:
    """Writes a comment after each PING_INTERVAL of silence. One timer, whatever the rate of frames."""

    def __init__(self, way_out: Outlet, form: Format) -> None:
        self._outlet = way_out
        self._form = form
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PING_INTERVAL, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        silence = time.monotonic() - self._form.last
        if silence >= PING_INTERVAL:
            if self._outlet.writable:
                self._outlet.write(Pong())
            silence = 0
        self._timer = self._loop.call_later(PING_INTERVAL - silence, self._check)


async def _begun(log: Log, way_out: Outlet) -> None:
    """Wait for a log's first delta, its end, or the end of the connection."""
    begun = asyncio.Event()

    def wake(*_: object) -> None:
        begun.set()

    way_out.ended.add_done_callback(wake)
    log.watch(wake)
    try:
        if log.last == 0 and log.terminal is None and not way_out.ended.done():
            await begun.wait()
    finally:
        log.unwatch(wake)


async def _gone(receive: Receive, way_out: Outlet) -> None:
    """Wait until the client has gone away; what else it sends is of no interest."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await way_out.stop()
