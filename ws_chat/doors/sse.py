"""The SSE door: one request, one answer as `text/event-stream` (WHATWG HTML, section "Server-sent events")."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from starlette.datastructures import QueryParams

from ws_chat.doors.http import error_response
from ws_chat.doors.outlet import AwaitedOutlet, Encoding, outlet
from ws_chat.doors.sse_format import format_named
from ws_chat.errors import ChatError
from ws_chat.frames import Chat, Failed, InvalidFrameError, Pong, decode
from ws_chat.reader import Reader
from ws_chat.session import Session, StartGeneration

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.doors.connections import Connections
    from ws_chat.doors.outlet import Outlet
    from ws_chat.doors.sse_format import Format
    from ws_chat.relay import Relay
    from ws_chat.stores.base import Log

PING_INTERVAL: Final = 15.0
"""Seconds of silence after which a comment line keeps proxies from closing the connection."""

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class SSEDoor:
    """Serves chats as event streams. Bodies above `max_body_bytes` are `too_large`."""

    def __init__(
        self, relay: Relay, connections: Connections, *, max_body_bytes: int, new_id: Callable[[], str]
    ) -> None:
        self._relay = relay
        self._connections = connections
        self._max_body_bytes = max_body_bytes
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one chat, as an ASGI application. Raises ChatError when there is nothing to stream."""
        with self._connections.admit():
            form = format_named(QueryParams(scope["query_string"]).get("format", "text"))
            start = await self._chat(receive)
            log = await self._relay.start(start.id, start.chat)

            async def send_batch(batch: list[bytes]) -> None:
                await send({"type": "http.response.body", "body": b"".join(batch), "more_body": True})

            way_out = outlet(Encoding(form.frame, form.token), scope, send_batch)
            # Where the wire does not tell that the client has gone away, asking the server does.
            gone = asyncio.create_task(_gone(receive, way_out)) if isinstance(way_out, AwaitedOutlet) else None
            try:
                await _begun(log, way_out)
                if log.last == 0 and isinstance(log.terminal, Failed):
                    headers = {"X-Generation-Id": start.id}
                    await error_response(log.terminal.error, headers)(scope, receive, send)
                elif not way_out.ended.done():
                    await _stream(log, way_out, form, send)
            finally:
                self._relay.release(start.id)
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


async def _stream(log: Log, way_out: Outlet, form: Format, send: Send) -> None:
    headers = [*_HEADERS, (b"x-generation-id", log.start.id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pings = _Pings(way_out, form)
    reader = Reader(log, 0, way_out, on_end=way_out.close)
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
    if log.last == 0 and log.terminal is None:
        await begun.wait()
    log.unwatch(wake)


async def _gone(receive: Receive, way_out: Outlet) -> None:
    """Wait until the client has gone away; what else it sends is of no interest."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await way_out.stop()
