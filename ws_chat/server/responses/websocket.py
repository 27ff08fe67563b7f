"""The Responses protocol over WebSocket: lanes of responses, each one after the other, many lanes on one socket."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import Failed, decode_json
from ws_chat.server.responses.reader import ResponseReader
from ws_chat.server.responses.request import stream_id, translate
from ws_chat.server.responses.responses import create, get
from ws_chat.server.responses.types import ErrorEvent, Steer, SteerFailed
from ws_chat.server.sockets import Socket

if TYPE_CHECKING:
    from ws_chat.server.responses.request import Request

_CONTENT_STATUSES: Final = (400, 403, 413)
"""Of refusals that are about what a request contains."""
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Turn:
    """A request in its lane."""

    id: str
    request: Request
    size: int
    task: asyncio.Task[None] | None = None
    """Starts it."""


@dataclass(slots=True)
class _Lane:
    """The response that runs, and the requests that wait for its end."""

    name: str | None
    running: _Turn
    waiting: deque[_Turn] = field(default_factory=deque)


class ResponseSocket(Socket):
    """One open socket, and its lanes."""

    transport = "responses"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lanes: dict[str | None, _Lane] = {}
        self._closed = False
        self._evicted: set[str] = set()  # running unstored responses that cannot be continued from
        self._background: set[str] = set()  # running responses that outlive the socket

    @staticmethod
    def encode(frame: Any, /) -> bytes:
        return frame if isinstance(frame, bytes) else _encode(frame)

    async def receive(self, data: bytes) -> None:
        lane = None
        try:
            self.check_size(data)
            fields = decode_json(data)
            kind = fields.get("type") if isinstance(fields, dict) else None
            match kind:
                case "response.create":
                    lane = stream_id(fields)
                    await self._create(lane, fields, len(data))
                case "response.cancel":
                    await self.pace(self.answer(self._cancel(fields.get("response_id"), len(data)), len(data)))
                case "response.steer":
                    await self.sender.reply(SteerFailed(steer=_steer(fields)))
                case "response.processed":
                    pass
                case _:
                    message = '"type" must be "response.create", "response.cancel" or "response.steer".'
                    raise ChatError("invalid_request", message, param="type")
        except ChatError as error:
            await self._refuse(error, len(data), lane)

    async def _create(self, lane: str | None, fields: dict[str, Any], size: int) -> None:
        try:
            fields.pop("stream", None)  # it has a meaning over HTTP only
            turn = _Turn(self.endpoint.new_id(), translate(fields), size)
        except ChatError:
            self._evict(fields.get("previous_response_id"))
            raise
        limit = self.endpoint.max_generations
        if sum(1 + len(known.waiting) for known in self._lanes.values()) >= limit:
            message = f"At most {limit} responses may run or wait on a connection."
            raise ChatError("too_many_generations", message, retry_after=1, limit="max_generations_per_connection")
        if known := self._lanes.get(lane):
            known.waiting.append(turn)
            return
        self._lanes[lane] = _Lane(lane, turn)
        await self.pace(self._run(self._lanes[lane]))

    def _run(self, lane: _Lane) -> asyncio.Task[None]:
        lane.running.task = task = self.answer(self._start(lane), lane.running.size)
        return task

    async def _start(self, lane: _Lane) -> None:
        turn = lane.running
        echo = turn.request.echo
        try:
            log = await create(self.relay, self.caller, turn.id, turn.request)
        except ChatError as error:
            info = error.info
            if info.status in _CONTENT_STATUSES and (info.code, info.param) != (
                "invalid_request",
                "previous_response_id",
            ):
                self._evict(echo.previous_response_id)
            await self._refuse(error, turn.size, lane.name)
            self._next(lane)
            return
        except Exception as error:  # noqa: BLE001  (logged there)
            await self.fail(error)
            return
        key = self.caller.key(turn.id, named=echo.store)
        if echo.background:
            self._background.add(turn.id)

        def on_end() -> None:
            self.unfollow(key)
            self._background.discard(turn.id)
            if turn.id in self._evicted:
                self._evict(turn.id)
            if isinstance(log.terminal, Failed):
                self._evict(echo.previous_response_id)
            self._next(lane)

        self.follow(ResponseReader(log, echo, self.sender, on_end, stream_id=lane.name, errors=True), key)

    def _next(self, lane: _Lane) -> None:
        if self._closed:
            return
        if lane.waiting:
            lane.running = lane.waiting.popleft()
            self._run(lane)
        else:
            del self._lanes[lane.name]

    async def _cancel(self, response_id: Any, size: int) -> None:
        try:
            if response_id is None:
                if len(self._lanes) != 1:
                    message = f"{len(self._lanes)} responses run on this connection: name one."
                    raise ChatError("invalid_request", message, param="response_id")
                (lane,) = self._lanes.values()
                response_id = lane.running.id
                if lane.running.task:
                    await asyncio.wait({lane.running.task})
            if not isinstance(response_id, str):
                raise ChatError("invalid_request", '"response_id" must be a string.', param="response_id")
            if not self.owns(response_id):
                await get(self.relay, self.caller, response_id)
            await self.relay.cancel(self.caller, response_id)
        except ChatError as error:
            await self._refuse(error, size, None)

    def _evict(self, response_id: Any) -> None:
        """Forget an unstored response, so that no request can continue from it."""
        if isinstance(response_id, str) and not self.forget(response_id):
            self._evicted.add(response_id)

    async def _refuse(self, error: ChatError, size: int, lane: str | None) -> None:
        error = await self.relay.count_refusal(self.caller, error, size)
        self.refuse(error)
        await self.sender.reply(ErrorEvent.of(error.info, stream_id=lane))

    def release_all(self) -> None:
        self._closed = True
        self._lanes.clear()
        left = [key for _, key in self.readers.values() if key.named and key.id not in self._background]
        super().release_all()
        for key in left:
            self.relay.abandon(key)


def _steer(fields: dict[str, Any]) -> Steer:
    for name in ("input", "previous_response_id"):
        if fields.get(name) is None:
            raise ChatError("invalid_request", f'"{name}" is missing.', param=name)
    return Steer(fields["input"], fields["previous_response_id"])
