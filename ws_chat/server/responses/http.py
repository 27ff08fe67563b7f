"""The Responses protocol over HTTP: start a response, as an event stream or whole; retrieve, cancel and delete stored ones."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from ws_chat.protocol.deltas import MERGE_LIMIT, decode_delta
from ws_chat.protocol.errors import ChatError, ErrorInfo
from ws_chat.protocol.frames import Failed, GoAway, Pong, decode_json
from ws_chat.protocol.sse import PING
from ws_chat.relay.relay import end_of
from ws_chat.server.exchange import Exchange, Format, HTTPEndpoint
from ws_chat.server.http_errors import error_response
from ws_chat.server.responses.events import Fold
from ws_chat.server.responses.reader import ResponseReader
from ws_chat.server.responses.request import translate
from ws_chat.server.responses.responses import create, get
from ws_chat.server.sockets import UPGRADE_REQUIRED

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.access import Caller
    from ws_chat.server.responses.types import Echo
    from ws_chat.stores.base import GenerationKey, Log

_DONE: Final = b"[DONE]"
_NUMBER: Final = re.compile("[0-9]{1,18}")


class ResponsesEndpoint(HTTPEndpoint):
    """Serves responses over HTTP."""

    transport = "responses"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path_params"] or scope["method"] == "POST":
            await super().__call__(scope, receive, send)
            return
        error = ErrorInfo.of("invalid_request", UPGRADE_REQUIRED, status=426)
        await error_response(error, {"Upgrade": "websocket"})(scope, receive, send)

    async def serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        response_id = scope["path_params"].get("id")
        method = scope["method"]
        if response_id and method in ("DELETE", "POST"):  # also while draining or at a limit: it frees a place
            answer = await (self._delete if method == "DELETE" else self._cancel)(caller, response_id)
            await answer(scope, receive, send)
            return
        with self.connections.admit(caller) as connection:
            exchange = _Exchange(self, connection, scope, receive, send)
            await (exchange.retrieve(response_id) if response_id else exchange.counted(exchange.start()))

    async def _cancel(self, caller: Caller, response_id: str) -> Response:
        log, echo = await get(self.relay, caller, response_id)
        if log.terminal is None:
            await self.relay.end(caller.key(response_id, named=True), log)
        return _json(response_id, await _whole(log, echo))

    async def _delete(self, caller: Caller, response_id: str) -> Response:
        log, _ = await get(self.relay, caller, response_id)
        await self.relay.forget(caller.key(response_id, named=True), log)
        return _json(response_id, {"id": response_id, "object": "response", "deleted": True})


class _Exchange(Exchange):
    """A request for one response, and its answer."""

    async def start(self) -> None:
        """Start a response, and answer with its events, or with all of it."""
        fields = decode_json(await self.body())
        if not isinstance(fields, dict):
            raise ChatError("invalid_request", "A request must be a JSON object.")
        fields.pop("stream_id", None)  # it has a meaning over a WebSocket only
        request = translate(fields)
        del fields
        echo = request.echo
        if echo.background and not request.stream:
            raise ChatError("invalid_request", '"background" needs "stream": true.', param="background")
        response_id = self.endpoint.new_id()
        key = self.caller.key(response_id, named=echo.store)
        log = await create(self.relay, self.caller, response_id, request)
        try:
            await (self._events(key, log, echo) if request.stream else self._answer_whole(key, log, echo))
        finally:
            if not echo.store:
                self.relay.release(key)
            elif not echo.background:
                self.relay.abandon(key, unless_read=True)

    async def retrieve(self, response_id: str) -> None:
        """Answer with a stored response, or with its events after one of them."""
        query = QueryParams(self.scope["query_string"])
        after = query.get("starting_after")
        if after is not None and not _NUMBER.fullmatch(after):
            raise ChatError("invalid_request", '"starting_after" must be a whole number.', param="starting_after")
        log, echo = await get(self.relay, self.caller, response_id)
        if self.scope["method"] == "HEAD" or query.get("stream", "").lower() not in ("true", "1"):
            await self.answer(_json(response_id, await _whole(log, echo)))
            return
        self.relay.follow(self.caller, after=0)
        key = self.caller.key(response_id, named=True)
        await self._events(key, log, echo, after=-1 if after is None else int(after), wait=False)

    async def _events(self, key: GenerationKey, log: Log, echo: Echo, *, after: int = -1, wait: bool = True) -> None:
        await self.stream(
            key,
            log,
            _EventFormat(),
            lambda sender: ResponseReader(log, echo, sender, sender.close, after=after, last=_DONE),
            wait=wait,
        )

    async def _answer_whole(self, key: GenerationKey, log: Log, echo: Echo) -> None:
        """Wait for the end of a response, and answer with it, unless its client has gone."""
        with self.relay.reading(key, log), end_of(log) as ended:
            waiting = {asyncio.create_task(ended.wait()), asyncio.create_task(self.gone())}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
        if error := log.terminal.error if isinstance(log.terminal, Failed) else log.fault:
            await self.answer(error_response(error, _headers(key.id)))
        elif log.terminal:
            await self.answer(_json(key.id, await _whole(log, echo)))


class _EventFormat(Format):
    """An event for each event: its type, and its JSON."""

    def encode(self, frame: Any) -> bytes:
        self.last = time.monotonic()
        if isinstance(frame, Pong):
            return PING
        if isinstance(frame, GoAway):
            return b""
        if frame is _DONE:
            return b"data: [DONE]\n\n"
        name = frame[len(b'{"type":"') : frame.index(b'"', len(b'{"type":"'))]
        return b"event: %b\ndata: %b\n\n" % (name, frame)


async def _whole(log: Log, echo: Echo) -> Any:
    """Return the response object. A long answer takes many turns of the event loop."""
    fold = Fold(log.start, echo)
    if log.terminal is None:
        return fold.response
    seq = 0
    while deltas := log.after(seq, MERGE_LIMIT):
        seq += len(deltas)
        for delta in deltas:
            fold.feed(decode_delta(delta))
        await asyncio.sleep(0)
    return fold.whole(log.terminal)


def _json(response_id: str, value: Any) -> Response:
    return Response(msgspec.json.encode(value), headers=_headers(response_id), media_type="application/json")


def _headers(response_id: str) -> dict[str, str]:
    return {"X-Generation-Id": response_id}
