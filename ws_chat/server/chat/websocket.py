"""The WebSocket door: one JSON object per message, many generations on one socket (RFC 6455)."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from starlette.websockets import WebSocketDisconnect

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import InvalidFrameError, Refused, decode, encode, encode_token
from ws_chat.relay.access import SUBPROTOCOL
from ws_chat.relay.reader import Reader
from ws_chat.relay.session import CancelGeneration, FollowGeneration, Reply, Session, StartGeneration
from ws_chat.server.chat.sender import Encoding, outlet
from ws_chat.server.http_errors import error_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.websockets import WebSocket

    from ws_chat.relay.relay import Relay
    from ws_chat.server.connections import Connection, Connections
    from ws_chat.stores.base import Log

logger = logging.getLogger("ws_chat.websocket")

DOOR = "websocket"
TOO_LARGE = 1009
INTERNAL_ERROR = 1011
REMEMBERED = 128
"""How many ended generations that nobody named a socket still knows: they can be continued from."""
_ENCODING = Encoding(encode, encode_token)


class WebSocketDoor:
    """Serves sockets. Frames above `max_frame_bytes` close a socket with 1009."""

    def __init__(
        self,
        relay: Relay,
        connections: Connections,
        *,
        max_frame_bytes: int,
        max_generations: int,
        new_id: Callable[[], str],
    ) -> None:
        """Let each socket run `max_generations` generations at once."""
        self.relay = relay
        self.connections = connections
        self.max_frame_bytes = max_frame_bytes
        self._max_generations = max_generations
        self._new_id = new_id

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one socket until it closes. A refusal is an HTTP response, before the upgrade."""
        try:
            caller = await self.connections.caller(websocket.scope, DOOR)
            with self.connections.admit(caller) as connection:
                offered = websocket.scope["subprotocols"]
                await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
                session = Session(limit=self._max_generations, new_id=self._new_id)
                await _Socket(websocket, self, session, connection).run()
        except ChatError as error:
            self.connections.refuse(DOOR, error)
            await websocket.send_denial_response(error_response(error.info))


class _Socket:
    """One open socket: its session, its readers, its outlet."""

    def __init__(self, websocket: WebSocket, door: WebSocketDoor, session: Session, connection: Connection) -> None:
        self._websocket = websocket
        self._relay = door.relay
        self._connections = door.connections
        self._max_frame_bytes = door.max_frame_bytes
        self._session = session
        self._caller = connection.caller
        self._outlet = connection.outlet = outlet(_ENCODING, websocket.scope, self._send)
        self._readers: dict[str, tuple[Reader, str]] = {}  # by id, with the key of their log
        self._unnamed: set[str] = set()  # the keys of running generations that nobody but this socket can reach
        self._ended: deque[str] = deque()  # and of those that have ended: they can be continued from

    async def run(self) -> None:
        try:
            await self._receive_all()
        except WebSocketDisconnect:
            pass
        except Exception:
            logger.exception("A socket is closed because of an error")
            await self._websocket.close(INTERNAL_ERROR)
        finally:
            # First the generations: whatever else happens here, a client that has gone costs nothing more.
            for reader, key in self._readers.values():
                reader.close()
                self._relay.detach(self._caller, key, reader)
            for key in (*self._unnamed, *self._ended):
                self._relay.release(key)
            await self._outlet.stop()

    async def _receive_all(self) -> None:
        # Receiving never waits for a generation: a server that is not asked for messages misses pongs and disconnects.
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            data = message["bytes"] if text is None else text.encode()
            if len(data) > self._max_frame_bytes:
                await self._websocket.close(TOO_LARGE)
                return
            await self._receive(data)

    async def _receive(self, data: bytes) -> None:
        frame_id = None
        try:
            frame = decode(data)
            frame_id = getattr(frame, "id", None)
            match self._session.receive(frame):
                case StartGeneration(generation_id, chat):
                    log = await self._relay.start(self._caller, generation_id, chat)
                    self._follow(log, 0, named=chat.id is not None)
                case FollowGeneration(generation_id, after):
                    log = await self._relay.find(self._caller, generation_id, after)
                    self._follow(log, after, named=True)
                case CancelGeneration(generation_id):
                    await self._relay.cancel(self._caller, generation_id)
                case Reply(reply):
                    await self._outlet.reply(reply)
        except ChatError as error:
            self._connections.refuse(DOOR, error)
            named = error.id if isinstance(error, InvalidFrameError) else frame_id
            await self._outlet.reply(Refused(error.info, named))

    def _follow(self, log: Log, after: int, *, named: bool) -> None:
        """Read a log from after a seq; the reader that this socket had of it ends there."""
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

        reader = Reader(log, after, self._outlet, on_end)
        self._relay.attach(key, reader)
        if before := self._readers.pop(generation_id, None):
            before[0].close()
            self._relay.detach(self._caller, before[1], before[0])
        if not named:
            self._unnamed.add(key)
        self._session.follows(generation_id, named=named)
        self._readers[generation_id] = (reader, key)
        reader.open()

    async def _send(self, batch: list[bytes]) -> None:
        try:
            for data in batch:
                await self._websocket.send_text(data.decode())
        except WebSocketDisconnect as error:
            raise ConnectionError from error
