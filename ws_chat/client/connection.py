"""One WebSocket, and the answers that it carries: it sends their requests and dispatches the frames that arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from websockets.exceptions import ConnectionClosed

from ws_chat.client.errors import (
    GONE_CODE,
    ClientError,
    ConnectionLostError,
    ProtocolError,
    error_from,
    policy_violation,
    too_large,
)
from ws_chat.client.request import cancel_frame, ping_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.asyncio.client import ClientConnection

    from ws_chat.client.reply import ReplyState

T = TypeVar("T")

_REPLY_FRAMES: Final = ("start", "token", "done", "error")
_LOST_CODE: Final = "generation_lost"
_POLICY_VIOLATION: Final = 1008
_MESSAGE_TOO_BIG: Final = 1009


class _Carried(NamedTuple):
    """A reply, and how its stay on the connection ends: a retryable refusal, or None (it ended, is handed over or lost)."""

    reply: ReplyState
    outcome: asyncio.Future[ClientError | None]


class ChatConnection:
    """A WebSocket. A peer that answers no ping for twice `heartbeat` seconds counts as lost.

    `on_move` is called when the server says that running answers can be resumed elsewhere, with the seconds that are left.
    """

    def __init__(
        self, socket: ClientConnection, *, heartbeat: float, on_move: Callable[[ChatConnection, float], None]
    ) -> None:
        self.leaving = False
        """Got goaway: running answers finish here, new requests go elsewhere."""
        self.lost = False
        self.alive = time.monotonic()
        """When the peer last answered a ping."""
        self._socket = socket
        self._heartbeat = heartbeat
        self._on_move = on_move
        self._carried: dict[str, _Carried] = {}
        self._unanswered: dict[str, int] = {}  # by id: the size of each request without an answer so far
        self._cancels: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def close_reason(self) -> str:
        """The close code and reason, for people."""
        return f"code {self._socket.close_code} {self._socket.close_reason or ''}".strip()

    async def carry(self, reply: ReplyState) -> ClientError | None:
        """Request an answer, or the rest of it; return when it has ended or is handed over, or the socket is lost.

        Returns the refusal when the server asks to try again later.
        """
        if self.lost:
            return None
        outcome: asyncio.Future[ClientError | None] = asyncio.get_running_loop().create_future()
        self._carried[reply.id] = carried = _Carried(reply, outcome)
        reply._carrier = self
        opening = reply._opening
        self._unanswered[reply.id] = len(opening.encode())
        reply._sent = True
        try:
            await self._send(opening)
            if reply._cancelling:
                await self._send(cancel_frame(reply.id))
            return await outcome
        finally:
            reply._carrier = None
            if self._carried.get(reply.id) is carried:
                del self._carried[reply.id]
                self._unanswered.pop(reply.id, None)
            if self.leaving and not self._carried:
                await self._socket.close()

    def hand_over(self) -> None:
        """Stop carrying replies: they are resumed on another connection."""
        if not self.lost:
            self.alive = time.monotonic()
        for carried in self._carried.values():
            _settle(carried.outcome, None)

    async def cancel(self, reply: ReplyState) -> None:
        await self._send(cancel_frame(reply.id))

    async def cancel_other(self, request_id: str) -> None:
        """Cancel a generation that is not carried here. Raises ReplyError, ConnectionLostError."""
        if self.lost:
            raise ConnectionLostError(self.close_reason)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cancels.append((request_id, done))
        await self._send(cancel_frame(request_id))
        # Only a refused cancel is answered. If the pong comes first, it was not refused.
        await self._send(ping_frame(request_id))
        await done

    async def close(self) -> None:
        await self._socket.close()

    async def run(self) -> None:
        """Dispatch frames until the socket is lost."""
        watching = asyncio.create_task(self._watch())
        failure: ProtocolError | None = None
        try:
            async for message in self._socket:
                self._receive(json.loads(message))
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001  (no caller may wait for ever, whatever the error)
            failure = ProtocolError(f"The server does not speak the protocol of ws_chat: {error!r}.")
            failure.__cause__ = error
        finally:
            watching.cancel()
            self._lose(failure)
        if failure:
            await self._socket.close()

    async def _send(self, frame: str) -> None:
        with contextlib.suppress(ConnectionClosed):  # `run` ends too, and settles all carried replies
            await self._socket.send(frame)

    def _receive(self, frame: dict[str, Any]) -> None:
        kind, request_id = frame["type"], frame.get("id")
        if kind == "goaway":
            self.leaving = True
            if frame.get("move"):
                self._on_move(self, frame["deadline_ms"] / 1000)
        elif kind == "pong":
            for cancel in self._cancels:
                if request_id in (cancel[0], None):  # None: of a server that does not know pings with an id
                    self._cancels.remove(cancel)
                    _settle(cancel[1], None)
                    break
        elif kind == "error" and "seq" not in frame:
            self._receive_refusal(request_id, frame["error"])
        elif kind in _REPLY_FRAMES and (carried := self._carried.get(request_id or "")):
            self._unanswered.pop(carried.reply.id, None)
            carried.reply._receive(frame)
            if carried.reply.ended:
                _settle(carried.outcome, None)

    def _receive_refusal(self, request_id: str | None, error: dict[str, Any]) -> None:
        refusal = error_from(error)
        if request_id is None:  # the server could not decode the frame: it is the oldest one
            request_id = next(iter(self._unanswered), None)
        carried = self._carried.get(request_id or "")
        # Also one that has begun, if the server cannot read on.
        if carried and (carried.reply.id in self._unanswered or refusal.retryable):
            self._unanswered.pop(carried.reply.id, None)
            self.leaving = self.leaving or refusal.code == "draining"
            if refusal.code == GONE_CODE and carried.reply._restart():
                refusal.retryable = True
            if refusal.retryable and refusal.code != _LOST_CODE:  # a lost generation cannot be resumed
                carried.reply._sent = False
                _settle(carried.outcome, refusal)
            else:
                carried.reply._refuse(error)
                _settle(carried.outcome, None)
        elif not carried:
            for cancelled, done in self._cancels:
                if cancelled == request_id and not done.done():
                    done.set_exception(refusal)  # its pong is still to come: it stays in the queue
                    break

    def _lose(self, failure: ProtocolError | None) -> None:
        if not self.lost:
            self.lost = True
            self.alive = time.monotonic()
        for reply, fault in self._at_fault():
            reply._finish(fault)
        for carried in self._carried.values():
            if failure:
                carried.reply._finish(failure)
            _settle(carried.outcome, None)
        for _, done in self._cancels:
            if not done.done():
                done.set_exception(failure or ConnectionLostError(f"The connection was lost: {self.close_reason}."))

    def _at_fault(self) -> list[tuple[ReplyState, ClientError]]:
        """Return the replies whose requests made the server close the socket: they would close the next one too."""
        code, reason = self._socket.close_code, self._socket.close_reason
        sizes = {key: size for key, size in self._unanswered.items() if not self._carried[key].reply._accepted}
        if code == _MESSAGE_TOO_BIG and sizes:
            largest = max(sizes, key=sizes.__getitem__)
            return [(self._carried[largest].reply, too_large(sizes[largest]))]
        if code == _POLICY_VIOLATION:
            return [(self._carried[key].reply, policy_violation(reason or "")) for key in sizes]
        return []

    async def _watch(self) -> None:
        """Ping, and abort the socket of a peer that does not answer: its network may be gone without a reset."""
        transport = self._socket.transport
        while True:
            await asyncio.sleep(self._heartbeat)
            pending = transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._heartbeat):
                    await (await self._socket.ping())
            except TimeoutError:
                # A large request on a slow uplink delays the ping, while its buffer shrinks.
                if transport.get_write_buffer_size() >= pending:
                    self.lost = True
                    transport.abort()
                    return
            except ConnectionClosed:
                return
            self.alive = time.monotonic()


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
