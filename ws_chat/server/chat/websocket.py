"""The chat protocol over WebSocket: one JSON object per message, many generations on one socket (RFC 6455)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import UNSET
from starlette.websockets import WebSocket, WebSocketDisconnect

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import InvalidFrameError, Refused, decode, encode
from ws_chat.relay.access import COUNTED_SIZE, SUBPROTOCOL
from ws_chat.relay.events import LimitReached
from ws_chat.relay.reader import Reader
from ws_chat.relay.session import CancelGeneration, FollowGeneration, SendFrame, Session, StartGeneration
from ws_chat.server.chat.sender import AwaitedSender, DirectSender, direct_writer
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.relay import Relay
    from ws_chat.relay.session import Action
    from ws_chat.server.chat.sender import ConnectionSender, DirectWriter
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import GenerationKey, Log

logger = logging.getLogger("ws_chat.websocket")

TRANSPORT: Final = "websocket"
TOO_LARGE: Final = 1009
INTERNAL_ERROR: Final = 1011
ANSWER_TIMEOUT: Final = 9.0
"""Seconds after which a frame without an answer is refused as `overloaded`: with ORDER_TIMEOUT of the frame before it, 10."""
ORDER_TIMEOUT: Final = 1.0
"""Seconds that receiving waits for the answer to a frame. So quick answers are sent in the order of the frames."""
MAX_UNANSWERED: Final = 64
"""Unanswered frames, of together at most `max_frame_bytes`, at which receiving pauses."""
REMEMBERED: Final = 128
"""Ended unnamed generations that a socket keeps, to be continued from."""


class WebSocketEndpoint:
    """Serves sockets, as an ASGI application. Frames above `max_frame_bytes` close a socket with 1009."""

    def __init__(
        self,
        relay: Relay,
        connections: Connections,
        *,
        max_frame_bytes: int,
        max_generations: int,
        new_id: Callable[[], str],
    ) -> None:
        self.relay = relay
        self.connections = connections
        self.max_frame_bytes = max_frame_bytes
        self.max_generations = max_generations
        self.new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket until it closes. A refusal is an HTTP response, before the upgrade."""
        websocket = WebSocket(scope, receive, send)
        try:
            caller = await self.connections.caller(scope, TRANSPORT)
            with self.connections.admit(caller) as connection:
                await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None)
                await _Socket(self, connection, websocket, direct_writer(scope, receive, send)).run()
        except ChatError as error:
            self.connections.refuse(TRANSPORT, error)
            await websocket.send_denial_response(error_response(error.info))


class _Socket:
    """One open socket: its session, its readers, its sender."""

    def __init__(
        self,
        endpoint: WebSocketEndpoint,
        connection: Connection,
        websocket: WebSocket,
        writer: DirectWriter | None,
    ) -> None:
        self._websocket = websocket
        self._relay = endpoint.relay
        self._connections = endpoint.connections
        self._max_frame_bytes = endpoint.max_frame_bytes
        self._session = Session(limit=endpoint.max_generations, new_id=endpoint.new_id)
        self._caller = connection.caller
        self._sender: ConnectionSender
        self._sender = DirectSender(encode, writer) if writer else AwaitedSender(encode, self._send_batch)
        self._sender.open()
        connection.sender = self._sender
        connection.leave_running = self._leave_running
        self._answering: dict[asyncio.Task[None], int] = {}  # with the bytes of their frames
        self._latest: dict[str | None, asyncio.Task[None]] = {}  # the last task for each generation id
        self._readers: dict[str, tuple[Reader, GenerationKey]] = {}  # by id, with the key of their log
        self._unnamed: set[GenerationKey] = set()  # running unnamed generations of this socket
        self._ended: deque[GenerationKey] = deque()  # ended ones, which can be continued from

    async def run(self) -> None:
        try:
            await self._receive_all()
        except WebSocketDisconnect:
            pass
        except Exception as error:  # noqa: BLE001  (logged there)
            await self._fail(error)
        finally:
            # The generations first, so that no upstream request outlives its client if something below fails.
            self._release_all()
            await self._sender.stop()
            if self._answering:  # a named chat that was sent before the close is started: its client may resume it
                await asyncio.wait(self._answering)
                self._release_all()

    def _release_all(self) -> None:
        for reader, key in self._readers.values():
            reader.close()
            self._relay.detach(self._caller, key, reader)
        self._readers.clear()
        for key in (*self._unnamed, *self._ended):
            self._relay.release(key)
        self._unnamed.clear()
        self._ended.clear()

    def _leave_running(self) -> None:
        for generation_id, (reader, key) in list(self._readers.items()):
            if reader.log.terminal is None:
                del self._readers[generation_id]
                reader.close()
                self._relay.detach(self._caller, key, reader)

    async def _receive_all(self) -> None:
        # Receiving never waits long for a generation: until `receive` is awaited again, the server misses pongs and
        # disconnects, and the client's other frames are not answered.
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            data = message["bytes"] if text is None else text.encode()
            if len(data) > self._max_frame_bytes:
                await self._websocket.close(TOO_LARGE)
                self._connections.observe(LimitReached("max_frame_bytes"))
                return
            await self._receive(data)

    async def _receive(self, data: bytes) -> None:
        """Decide about a frame, and answer it in a task, after earlier frames with the same ids.

        Frames without an id are answered in their order, because only that identifies their answers.
        """
        action: Action | ChatError
        frame_id = None
        ids: set[str | None] = set()
        try:
            if len(data) > COUNTED_SIZE:
                self._relay.throttle.check(self._caller)
            frame = decode(data)
            frame_id = getattr(frame, "id", None) or None
            action = self._session.receive(frame)
        except ChatError as error:
            action = error
            if isinstance(error, InvalidFrameError):
                frame_id = error.id
        match action:
            case SendFrame(reply):
                await self._sender.reply(reply)
                return
            case StartGeneration(generation_id, chat):
                ids = {generation_id, chat.previous_id or generation_id}
                self._session.follows(generation_id, named=chat.id is not None)
            case FollowGeneration(generation_id):
                self._session.follows(generation_id, named=True)
            case CancelGeneration(generation_id):
                ids = {generation_id}
        ids.add(frame_id)
        before = {task for each in ids if (task := self._latest.get(each))}
        task = asyncio.create_task(self._answer(action, frame_id, len(data), before))
        self._answering[task] = len(data)
        self._latest |= dict.fromkeys(ids, task)

        def forget(_: object) -> None:
            del self._answering[task]
            for each in ids:
                if self._latest.get(each) is task:
                    del self._latest[each]

        task.add_done_callback(forget)
        await asyncio.sleep(0)  # nearly every task is done then
        if not task.done() and len(self._answering) == 1:
            await asyncio.wait({task}, timeout=ORDER_TIMEOUT)
        while len(self._answering) >= MAX_UNANSWERED or sum(self._answering.values()) > self._max_frame_bytes:
            await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)

    async def _answer(
        self, action: Action | ChatError, frame_id: str | None, size: int, before: set[asyncio.Task[None]]
    ) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                if before:
                    await asyncio.wait(before)
                await self._carry_out(action)
            return
        except ChatError as error:
            refusal = error
        except TimeoutError:
            refusal = ChatError("overloaded", "The frame could not be answered in time.", retry_after=1)
        except Exception as error:  # noqa: BLE001  (logged there)
            await self._fail(error)
            return
        if isinstance(action, StartGeneration | FollowGeneration) and action.id not in self._readers:
            self._session.ended(action.id)
        if not isinstance(action, FollowGeneration):  # which is counted already
            refusal = await self._relay.count_refusal(self._caller, refusal, size)
        self._connections.refuse(TRANSPORT, refusal)
        await self._sender.reply(Refused(id=frame_id or UNSET, error=refusal.info))

    async def _carry_out(self, action: Action | ChatError) -> None:
        match action:
            case StartGeneration(generation_id, chat):
                log = await self._relay.start(self._caller, generation_id, chat)
                self._follow(log, 0, named=chat.id is not None)
            case FollowGeneration(generation_id, position):
                log = await self._relay.find(self._caller, generation_id, position)
                self._follow(log, position.seq, named=True)
            case CancelGeneration(generation_id):
                await self._relay.cancel(self._caller, generation_id)
            case ChatError():
                raise action

    def _follow(self, log: Log, after: int, *, named: bool) -> None:
        """Read a log from after a seq, in place of a reader that this socket has of it."""
        generation_id = log.start.id
        key = self._caller.key(generation_id, named=named)

        def on_end() -> None:
            reader, _ = self._readers.pop(generation_id)
            self._relay.detach(self._caller, key, reader)
            self._session.ended(generation_id)
            if not named:
                self._unnamed.remove(key)
                self._ended.append(key)
                if len(self._ended) > REMEMBERED:
                    self._relay.release(self._ended.popleft())

        reader = Reader(log, after, self._sender, on_end)
        self._relay.attach(key, reader)
        if before := self._readers.pop(generation_id, None):
            before[0].close()
            self._relay.detach(self._caller, before[1], before[0])
        if not named:
            self._unnamed.add(key)
        self._session.follows(generation_id, named=named)
        self._readers[generation_id] = (reader, key)
        reader.open()

    async def _fail(self, error: Exception) -> None:
        logger.error("Closing a socket because of an error", exc_info=error)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
            await self._websocket.close(INTERNAL_ERROR)

    async def _send_batch(self, batch: list[bytes]) -> None:
        try:
            for data in batch:
                await self._websocket.send_text(data.decode())
        except WebSocketDisconnect as error:
            raise ConnectionError from error
