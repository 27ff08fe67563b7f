"""The chat protocol over SSE: one request, one answer as `text/event-stream` (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import FROM_START, Chat, InvalidFrameError, Position, decode
from ws_chat.relay.reader import Reader
from ws_chat.relay.relay import is_lost
from ws_chat.server.chat.sse_format import FORMATS, format_named
from ws_chat.server.exchange import Exchange, HTTPEndpoint, failure, stream_headers

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.access import Caller
    from ws_chat.server.connections import Connection
    from ws_chat.stores.base import GenerationKey, Log


_NO_QUERY: Final = QueryParams()


class SSEEndpoint(HTTPEndpoint):
    """Serves generations as event streams."""

    transport = "sse"

    async def serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE":  # also while draining or at a limit: it frees a place
            await self.relay.cancel(caller, scope["path_params"]["id"])
            await Response(status_code=204)(scope, receive, send)
            return
        with self.connections.admit(caller) as connection:
            exchange = _Exchange(self, connection, scope, receive, send)
            await (exchange.counted(exchange.start()) if scope["method"] == "POST" else exchange.follow())


class _Exchange(Exchange):
    """A chat request, and the stream that answers it."""

    def __init__(
        self, endpoint: HTTPEndpoint, connection: Connection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        super().__init__(endpoint, connection, scope, receive, send)
        self._query = QueryParams(scope["query_string"]) if scope["query_string"] else _NO_QUERY
        self._format = self._query.get("format", "text")
        if self._format not in FORMATS:
            raise ChatError("invalid_request", '"format" must be "text" or "frames".', param="format")

    async def start(self) -> None:
        """Start a generation and stream it; a named one that is sent again, from after the position of the header."""
        chat = decode(await self.body())
        if not isinstance(chat, Chat):
            raise InvalidFrameError("invalid_request", "Only a chat can be sent here.", param="type")
        named = chat.id is not None
        generation_id = chat.id or self.endpoint.new_id()
        key = self.caller.key(generation_id, named=named)
        position = self._position() if named else FROM_START
        log = await self.relay.start(self.caller, generation_id, chat, position)
        try:
            await self._stream(key, log, position.seq)
        finally:
            if not named:
                self.relay.release(key)

    async def follow(self) -> None:
        """Stream a named generation from after a position."""
        generation_id = self.scope["path_params"]["id"]
        position = self._position(self._query.get("after", "0"))
        log = await self.relay.find(self.caller, generation_id, position)
        if log.terminal and position.seq == log.terminal.seq and not is_lost(log):
            # Nothing more can come, and only this status keeps an EventSource from asking again.
            await self.answer(Response(status_code=204))
        elif self.scope["method"] == "HEAD":
            await self.answer(failure(log) or _Head(log.start.id))
        else:
            await self._stream(self.caller.key(generation_id, named=True), log, position.seq)

    def _position(self, default: str = "0") -> Position:
        """Return the position to read after: an EventSource gives it in a header, which wins over all else."""
        return Position.of(Headers(scope=self.scope).get("last-event-id") or default)

    async def _stream(self, key: GenerationKey, log: Log, after: int) -> None:
        before = log.after(after - 1, 1) if after else ()
        form = format_named(self._format, log.start, named=key.named, before=before)
        await self.stream(key, log, form, lambda sender: Reader(log, after, sender, on_end=sender.close))


class _Head(Response):
    """The response to HEAD: the headers of the stream."""

    def __init__(self, generation_id: str) -> None:
        super().__init__()
        self.raw_headers = stream_headers(generation_id)
