"""The WebSocket door: one JSON object per message, many generations on one socket (RFC 6455)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.websockets import WebSocketDisconnect

from ws_chat.doors.http import error_response
from ws_chat.doors.outlet import Encoding, outlet
from ws_chat.errors import ChatError
from ws_chat.frames import InvalidFrameError, Refused, decode, encode, encode_token
from ws_chat.reader import Reader
from ws_chat.session import CancelGeneration, Reply, Session, StartGeneration

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.websockets import WebSocket

    from ws_chat.doors.connections import Connections
    from ws_chat.relay import Relay

logger = logging.getLogger("ws_chat.websocket")

TOO_LARGE = 1009
INTERNAL_ERROR = 1011
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
        self._connections = connections
        self.max_frame_bytes = max_frame_bytes
        self._max_generations = max_generations
        self._new_id = new_id

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one socket until it closes. A refusal is an HTTP response, before the upgrade."""
        try:
            with self._connections.admit():
                await websocket.accept()
                session = Session(limit=self._max_generations, new_id=self._new_id)
                await _Socket(websocket, self, session).run()
        except ChatError as error:
            await websocket.send_denial_response(error_response(error.info))


class _Socket:
    """One open socket: its session, its readers, its outlet."""

    def __init__(self, websocket: WebSocket, door: WebSocketDoor, session: Session) -> None:
        self._websocket = websocket
        self._relay = door.relay
        self._max_frame_bytes = door.max_frame_bytes
        self._session = session
        self._outlet = outlet(_ENCODING, websocket.scope, self._send)
        self._readers: dict[str, Reader] = {}

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
            for generation_id, reader in self._readers.items():
                reader.close()
                self._relay.release(generation_id)
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
                case StartGeneration() as start:
                    await self._start(start)
                case CancelGeneration(generation_id):
                    self._relay.cancel(generation_id)
                case Reply(reply):
                    await self._outlet.reply(reply)
        except InvalidFrameError as error:
            await self._outlet.reply(Refused(error.info, error.id))
        except ChatError as error:
            await self._outlet.reply(Refused(error.info, frame_id))

    async def _start(self, start: StartGeneration) -> None:
        def on_end() -> None:
            del self._readers[start.id]
            self._session.ended(start.id)
            self._relay.release(start.id)

        try:
            log = await self._relay.start(start.id, start.chat)
        except ChatError:
            self._session.ended(start.id)
            raise
        reader = self._readers[start.id] = Reader(log, 0, self._outlet, on_end)
        reader.open()

    async def _send(self, batch: list[bytes]) -> None:
        try:
            for data in batch:
                await self._websocket.send_text(data.decode())
        except WebSocketDisconnect as error:
            raise ConnectionError from error
