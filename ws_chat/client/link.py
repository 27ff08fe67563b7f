"""One socket, and the answers that it carries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from websockets.exceptions import ConnectionClosed

from ws_chat.client.errors import ClientError, ConnectionLostError, ProtocolError, against_policy, told, too_large
from ws_chat.client.request import PING, cancelling

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from ws_chat.client.answer import Answer

T = TypeVar("T")

_OF_AN_ANSWER: Final = ("start", "token", "done", "error")
LOST: Final = "generation_lost"
POLICY_VIOLATION: Final = 1008
TOO_LARGE: Final = 1009


class _Carried(NamedTuple):
    """An answer, and what becomes of it here: a refusal for now, or None: it ended, or the socket is lost."""

    answer: Answer
    outcome: asyncio.Future[ClientError | None]


class Link:
    """A socket. A peer that shows no life for twice `heartbeat` seconds counts as lost."""

    def __init__(self, socket: ClientConnection, *, heartbeat: float) -> None:
        self.leaving = False
        """The server wants to be rid of it: it carries to their end those that it carries, and no others."""
        self.lost = False
        self.alive = time.monotonic()
        """When the server last showed life, as far as has been looked for."""
        self._socket = socket
        self._heartbeat = heartbeat
        self._carried: dict[str, _Carried] = {}
        self._unanswered: dict[str, int] = {}  # the size of each request that the server has said nothing to yet
        self._cancels: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def ending(self) -> str:
        """How the socket was lost, for people."""
        return f"code {self._socket.close_code} {self._socket.close_reason or ''}".strip()

    async def carry(self, answer: Answer) -> ClientError | None:
        """Ask for an answer, or the rest of it, until it has ended or the socket is lost.

        Returns the refusal where the server would rather be asked later.
        """
        if self.lost:
            return None
        outcome: asyncio.Future[ClientError | None] = asyncio.get_running_loop().create_future()
        self._carried[answer.id] = carried = _Carried(answer, outcome)
        opening = answer.opening
        self._unanswered[answer.id] = len(opening.encode())
        answer.asked = True
        try:
            await self._send(opening)
            if answer.cancelling:
                await self._send(cancelling(answer.id))
            return await outcome
        finally:
            if self._carried.get(answer.id) is carried:
                del self._carried[answer.id]
                self._unanswered.pop(answer.id, None)
            if self.leaving and not self._carried:
                await self._socket.close()

    async def cancel(self, answer: Answer) -> None:
        """Ask for the end of an answer, if it is carried here."""
        if answer.id in self._carried:
            await self._send(cancelling(answer.id))

    async def cancel_other(self, request_id: str) -> None:
        """Cancel a generation that is not carried here. Raises ReplyError, and ConnectionLostError with the socket."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.lost:
            raise ConnectionLostError(self.ending)
        self._cancels.append((request_id, done))
        await self._send(cancelling(request_id))
        # A cancel that is carried out is not answered. What is answered after it tells that it was not refused.
        await self._send(PING)
        await done

    async def close(self) -> None:
        """Close the socket."""
        await self._socket.close()

    async def run(self) -> None:
        """Hand out what comes until the socket is lost."""
        watching = asyncio.create_task(self._watch())
        failure: ProtocolError | None = None
        try:
            async for message in self._socket:
                self._take(json.loads(message))
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for ever)
            failure = ProtocolError(f"What the server sends is not the protocol of ws_chat: {error!r}.")
            failure.__cause__ = error
        finally:
            watching.cancel()
            self._lose(failure)
        if failure:
            await self._socket.close()

    async def _send(self, frame: str) -> None:
        # On a socket that is lost it is lost, which is told to all that it carries.
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(frame)

    def _take(self, frame: dict[str, Any]) -> None:
        kind, request_id = frame["type"], frame.get("id")
        if kind == "goaway":
            self.leaving = True
        elif kind == "pong":
            if self._cancels:
                _settle(self._cancels.popleft()[1], None)
        elif kind == "error" and "seq" not in frame:
            self._refused(request_id, frame["error"])
        elif kind in _OF_AN_ANSWER and (carried := self._carried.get(request_id or "")):
            self._unanswered.pop(carried.answer.id, None)
            carried.answer.take(frame)
            if carried.answer.ended:
                _settle(carried.outcome, None)

    def _refused(self, request_id: str | None, error: dict[str, Any]) -> None:
        """Take the refusal of a frame that was sent, which says whose it was, unless the server could not read it."""
        refusal = told(error)
        if request_id is None:
            # Frames are read in their order.
            request_id = next(iter(self._unanswered), None)
        carried = self._carried.get(request_id or "")
        if carried and carried.answer.id in self._unanswered:
            del self._unanswered[carried.answer.id]
            self.leaving = self.leaving or refusal.code == "draining"
            if refusal.retryable and refusal.code != LOST:  # the rest of what is lost never comes
                carried.answer.asked = False
                _settle(carried.outcome, refusal)
            else:
                carried.answer.refuse(error)
                _settle(carried.outcome, None)
        elif not carried:
            for place, (cancelled, done) in enumerate(self._cancels):
                if cancelled == request_id and not done.done():
                    # Its place is kept for the pong.
                    self._cancels[place][1].set_exception(refusal)
                    break

    def _lose(self, failure: ProtocolError | None) -> None:
        if not self.lost:
            self.lost = True
            self.alive = time.monotonic()
        for answer, fault in self._at_fault():
            answer.finish(fault)
        for carried in self._carried.values():
            if failure:
                carried.answer.finish(failure)
            _settle(carried.outcome, None)
        for _, done in self._cancels:
            if not done.done():
                done.set_exception(failure or ConnectionLostError(f"The connection was lost: {self.ending}."))

    def _at_fault(self) -> list[tuple[Answer, ClientError]]:
        """Return the answers whose requests the server closed the socket on. Asking again would only break the next."""
        code, reason = self._socket.close_code, self._socket.close_reason
        asked = {key: size for key, size in self._unanswered.items() if not self._carried[key].answer.acknowledged}
        if code == TOO_LARGE and asked:
            largest = max(asked, key=asked.__getitem__)
            return [(self._carried[largest].answer, too_large(asked[largest]))]
        if code == POLICY_VIOLATION:
            return [(self._carried[key].answer, against_policy(reason or "")) for key in asked]
        return []

    async def _watch(self) -> None:
        """Look for life, and give up a peer that shows none: its network may be gone without a word."""
        transport = self._socket.transport
        while True:
            await asyncio.sleep(self._heartbeat)
            pending = transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._heartbeat):
                    await (await self._socket.ping())
            except TimeoutError:
                # A large request on a slow way out delays a ping. It moves, though.
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
