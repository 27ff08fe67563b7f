"""The SSE door: one request, one answer as `text/event-stream` (WHATWG HTML, section "Server-sent events").

The text format is what a person at a terminal reads; the frames format carries the frames of the WebSocket, one an
event. Both are the same log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request

from ws_chat.doors.http import error_response
from ws_chat.doors.outlet import outlet
from ws_chat.errors import ChatError
from ws_chat.event_stream import PING, event
from ws_chat.frames import Chat, Done, Failed, InvalidFrameError, Token, decode, encode
from ws_chat.reader import Reader
from ws_chat.session import Session, StartGeneration

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.doors.connections import Connections
    from ws_chat.doors.outlet import Outlet
    from ws_chat.frames import ServerFrame
    from ws_chat.relay import Relay
    from ws_chat.stores.base import Log

PING_INTERVAL: Final = 15.0
"""Seconds of silence after which a comment line keeps proxies from closing the connection."""


CHAT_OPERATION: Final[dict[str, Any]] = {
    "summary": "Stream one answer as server-sent events",
    "operationId": "chat",
    "parameters": [
        {
            "name": "format",
            "in": "query",
            "schema": {"type": "string", "enum": ["text", "frames"], "default": "text"},
            "description": "What an event is: the answer's text, or a frame as on the WebSocket.",
        }
    ],
    "requestBody": {
        "required": True,
        "description": "A chat: `messages` and any parameter of the OpenAI chat-completions reference.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["messages"],
                    "properties": {
                        "messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}},
                        "model": {"type": "string"},
                    },
                    "additionalProperties": True,
                },
                "example": {"messages": [{"role": "user", "content": "hi"}]},
            }
        },
    },
    "responses": {
        "200": {"description": "The answer, as it comes", "content": {"text/event-stream": {}}},
        "default": {"description": 'An error before the answer: `{"error": …}`', "content": {"application/json": {}}},
    },
}
"""What the OpenAPI document says of the chat request, whose body is read here and not by the framework."""


_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class TextFormat:
    """Frames as the tutorial's events: the answer's text, then `[DONE]`."""

    def __init__(self) -> None:
        self._after_cr = False

    def __call__(self, frame: ServerFrame) -> bytes:
        """Return a frame's event; nothing for a frame that has no text."""
        match frame:
            case Token(delta=delta):
                return self._text(delta.get("content"))
            case Done(status="completed"):
                return event("[DONE]", name="done")
            case Done():
                return event("[CANCELLED]", name="done")
            case Failed(error=error):
                return event(msgspec.json.encode({"error": error.as_dict()}).decode(), name="error")
        return b""

    def _text(self, text: Any) -> bytes:
        if not isinstance(text, str) or not text:
            return b""
        # A CRLF may be cut in two by the frames; a reader that sees LF for both would see two line breaks.
        if self._after_cr and text[0] == "\n":
            text = text[1:]
            self._after_cr = False
            if not text:
                return b""
        self._after_cr = text[-1] == "\r"
        return event(text)


def frames_format(frame: ServerFrame) -> bytes:
    """Return a frame as an event: its type, its seq, and the same JSON as on the WebSocket."""
    return event(encode(frame).decode(), name=frame.type, event_id=getattr(frame, "seq", None))


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
        request = Request(scope, receive)
        with self._connections.admit():
            encoder = _format(request.query_params.get("format", "text"))
            start = await self._chat(request)
            log = await self._relay.start(start.id, start.chat)
            gone = asyncio.create_task(_gone(receive))
            try:
                await _begun(log, gone)
                if log.last == 0 and isinstance(log.terminal, Failed):
                    headers = {"X-Generation-Id": start.id}
                    await error_response(log.terminal.error, headers)(scope, receive, send)
                elif not gone.done():
                    await _stream(log, gone, encoder, scope, send)
            finally:
                self._relay.release(start.id)
                gone.cancel()

    async def _chat(self, request: Request) -> StartGeneration:
        frame = decode(await self._body(request))
        if not isinstance(frame, Chat):
            raise InvalidFrameError("invalid_request", "Only a chat can be sent here.", param="type")
        action = Session(limit=1, new_id=self._new_id).receive(frame)
        assert isinstance(action, StartGeneration)  # noqa: S101  (what a chat in a new session always is)
        return action

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._max_body_bytes:
                    raise ChatError("too_large", f"A request is at most {self._max_body_bytes} bytes.")
        except ClientDisconnect:
            raise ChatError("invalid_request", "The request was cut off.") from None
        return bytes(body)


def _format(name: str) -> Callable[[ServerFrame], bytes]:
    if name == "text":
        return TextFormat()
    if name == "frames":
        return frames_format
    raise ChatError("invalid_request", '"format" is "text" or "frames".', param="format")


async def _stream(
    log: Log, gone: asyncio.Task[None], encoder: Callable[[ServerFrame], bytes], scope: Scope, send: Send
) -> None:
    async def send_batch(batch: list[bytes]) -> None:
        await send({"type": "http.response.body", "body": b"".join(batch), "more_body": True})

    headers = [*_HEADERS, (b"x-generation-id", log.start.id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pings = _Pings(encoder)
    way_out = pings.outlet = outlet(pings.encode, scope, send_batch)
    reader = Reader(log, 0, way_out, on_end=way_out.close)
    try:
        reader.open()
        await asyncio.wait({way_out.ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if way_out.ended.done():
            way_out.ended.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        reader.close()
        pings.stop()
        await way_out.stop()


class _Pings:
    """Writes a comment after each PING_INTERVAL of silence. One timer, whatever the rate of frames."""

    outlet: Outlet

    def __init__(self, encoder: Callable[[ServerFrame], bytes]) -> None:
        self._encoder = encoder
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(PING_INTERVAL, self._check)

    def encode(self, frame: ServerFrame) -> bytes:
        """Encode a frame, and remember when something was sent."""
        data = self._encoder(frame)
        if data:
            self._last = self._loop.time()
        return data

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        silence = self._loop.time() - self._last
        if silence >= PING_INTERVAL:
            if self.outlet.writable:
                self.outlet.write_bytes(PING)
            silence = 0
        self._timer = self._loop.call_later(PING_INTERVAL - silence, self._check)


async def _begun(log: Log, gone: asyncio.Task[None]) -> None:
    """Wait for a log's first delta, its end, or the end of the connection."""
    begun = asyncio.Event()
    gone.add_done_callback(lambda _: begun.set())
    log.watch(begun.set)
    if log.last == 0 and log.terminal is None:
        await begun.wait()
    log.unwatch(begun.set)


async def _gone(receive: Receive) -> None:
    """Wait until the client has gone away; what else it sends is of no interest."""
    while (await receive())["type"] != "http.disconnect":
        pass
