"""One WebSocket: the parts that both protocols share (RFC 6455)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from ws_chat.protocol.errors import ChatError
from ws_chat.relay.access import COUNTED_SIZE, SUBPROTOCOL
from ws_chat.relay.events import LimitReached
from ws_chat.server.chat.sender import AwaitedSender, DirectSender, direct_writer
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.types import Receive, Scope, Send

    from ws_chat.relay.reader import Reader
    from ws_chat.relay.relay import Relay
    from ws_chat.server.chat.sender import ConnectionSender, DirectWriter
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import GenerationKey

logger = logging.getLogger("ws_chat.websocket")

UPGRADE_REQUIRED: Final = (
    "This path is a WebSocket: the request needs `Upgrade: websocket`, which a proxy may have removed."
)
TOO_LARGE: Final = 1009
INTERNAL_ERROR: Final = 1011
ORDER_TIMEOUT: Final = 1.0
"""Seconds that receiving waits for the answer to a frame, so that quick answers are sent in the order of the frames."""
MAX_UNANSWERED: Final = 64
"""Unanswered frames, of together at most `max_frame_bytes`, at which receiving pauses."""
REMEMBERED: Final = 128
"""Ended unnamed generations that a socket keeps, to be continued from."""


class WebSocketEndpoint:
    """Serves the sockets of a protocol, as an ASGI application. Frames above `max_frame_bytes` close a socket with 1009."""

    def __init__(
        self,
        socket: type[Socket],
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
        self._socket = socket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket until it closes. A refusal is an HTTP response, before the upgrade."""
        websocket = WebSocket(scope, receive, send)
        transport = self._socket.transport
        try:
            caller = await self.connections.caller(scope, transport)
            with self.connections.admit(caller) as connection:
                await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None)
                await self._socket(self, connection, websocket, direct_writer(scope, receive, send)).run()
        except ChatError as error:
            self.connections.refuse(transport, error)
            await websocket.send_denial_response(error_response(error.info))


class Socket(ABC):
    """One open socket: its readers and its sender."""

    transport: ClassVar[str]

    def __init__(
        self,
        endpoint: WebSocketEndpoint,
        connection: Connection,
        websocket: WebSocket,
        writer: DirectWriter | None,
    ) -> None:
        self.endpoint = endpoint
        self.relay = endpoint.relay
        self.caller = connection.caller
        self._websocket = websocket
        self.sender: ConnectionSender
        self.sender = DirectSender(self.encode, writer) if writer else AwaitedSender(self.encode, self._send_batch)
        self.sender.open()
        connection.sender = self.sender
        connection.leave_running = self._leave_running
        self._answering: dict[asyncio.Task[None], int] = {}  # the size of the frame that each task answers
        self.readers: dict[str, tuple[Reader, GenerationKey]] = {}  # by id, with the key of their log
        self._unnamed: set[GenerationKey] = set()  # running unnamed generations of this socket
        self._ended: list[GenerationKey] = []  # ended ones, which can be continued from, the oldest first

    async def run(self) -> None:
        try:
            await self._receive_all()
        except WebSocketDisconnect:
            pass
        except Exception as error:  # noqa: BLE001  (logged there)
            await self.fail(error)
        finally:
            # Release generations first, so that no upstream request outlives its client if a later step fails.
            self.release_all()
            await self.sender.stop()
            if self._answering:  # a named chat that was sent before the close is still started: it may be resumed
                await asyncio.wait(self._answering)
                self.release_all()

    @staticmethod
    @abstractmethod
    def encode(frame: Any, /) -> bytes:
        """Encode what is written to the sender as a text frame."""

    @abstractmethod
    async def receive(self, data: bytes) -> None:
        """Handle a frame. Must not wait long: until it returns, no other frame is received, nor a disconnect."""

    def answer(self, work: Coroutine[None, None, None], size: int) -> asyncio.Task[None]:
        """Answer a frame of `size` bytes in a task."""
        task = asyncio.create_task(work)
        self._answering[task] = size
        task.add_done_callback(self._answering.__delitem__)
        return task

    async def pace(self, task: asyncio.Task[None]) -> None:
        """Wait a moment for the answer to a frame, and while too many frames are unanswered."""
        await asyncio.sleep(0)  # nearly every task is done then
        if not task.done() and len(self._answering) == 1:
            await asyncio.wait({task}, timeout=ORDER_TIMEOUT)
        limit = self.endpoint.max_frame_bytes
        while len(self._answering) >= MAX_UNANSWERED or sum(self._answering.values()) > limit:
            await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)

    def follow(self, reader: Reader, key: GenerationKey) -> None:
        """Open a reader, which replaces the socket's earlier one of the same id. Call `unfollow` at its end."""
        self.relay.attach(key, reader)
        if before := self.readers.pop(key.id, None):
            before[0].close()
            self.relay.detach(self.caller, before[1], before[0])
        if not key.named:
            self._unnamed.add(key)
        self.readers[key.id] = (reader, key)
        reader.open()

    def unfollow(self, key: GenerationKey) -> None:
        reader, _ = self.readers.pop(key.id)
        self.relay.detach(self.caller, key, reader)
        if not key.named:
            self._unnamed.remove(key)
            self._ended.append(key)
            if len(self._ended) > REMEMBERED:
                self.relay.release(self._ended.pop(0))

    def check_size(self, data: bytes) -> None:
        """Raise ThrottledError for a large frame of a client that has sent too many requests."""
        if len(data) > COUNTED_SIZE:
            self.relay.throttle.check(self.caller)

    def owns(self, generation_id: str) -> bool:
        """Whether a generation runs on this socket, or is unnamed, has ended, and can be continued from."""
        key = self.caller.key(generation_id, named=False)
        return generation_id in self.readers or key in self._ended

    def forget(self, generation_id: str) -> bool:
        """Remove an unnamed generation, so that it cannot be continued from. Return False if it still runs."""
        key = self.caller.key(generation_id, named=False)
        if key in self._ended:
            self._ended.remove(key)
            self.relay.release(key)
        return key not in self._unnamed

    def release_all(self) -> None:
        """Stop reading, and remove the unnamed generations. May be called twice."""
        for reader, key in self.readers.values():
            reader.close()
            self.relay.detach(self.caller, key, reader)
        self.readers.clear()
        for key in (*self._unnamed, *self._ended):
            self.relay.release(key)
        self._unnamed.clear()
        self._ended.clear()

    def refuse(self, error: ChatError) -> None:
        self.endpoint.connections.refuse(self.transport, error)

    async def fail(self, error: Exception) -> None:
        logger.error("Closing a socket because of an error", exc_info=error)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
            await self._websocket.close(INTERNAL_ERROR)

    def _leave_running(self) -> None:
        for generation_id, (reader, key) in list(self.readers.items()):
            if reader.log.terminal is None:
                del self.readers[generation_id]
                reader.close()
                self.relay.detach(self.caller, key, reader)

    async def _receive_all(self) -> None:
        # `self.receive` must not wait long: until the socket is read again, pongs and disconnects are missed, and the
        # client's other frames are not answered.
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            data = message["bytes"] if text is None else text.encode()
            if len(data) > self.endpoint.max_frame_bytes:
                await self._websocket.close(TOO_LARGE)
                self.endpoint.connections.observe(LimitReached("max_frame_bytes"))
                return
            await self.receive(data)

    async def _send_batch(self, batch: list[bytes]) -> None:
        try:
            for data in batch:
                await self._websocket.send_text(data.decode())
        except WebSocketDisconnect as error:
            raise ConnectionError from error
