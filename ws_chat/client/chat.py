"""A connection to a ws_chat server that repairs itself.

Every request is named with a UUID, so nothing is lost or paid for twice when the socket breaks: what was never
acknowledged is sent again, and what was is resumed after its last seq. One task for each answer does just that, in a
loop; one for each socket hands out its frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Self

from ws_chat.client.answer import Answer
from ws_chat.client.errors import ClientError, ConnectionLostError
from ws_chat.client.link import Link
from ws_chat.client.network import HANDSHAKE, Address
from ws_chat.client.patience import Patience
from ws_chat.client.reply import Known, Reply
from ws_chat.client.request import asking, is_same, valid_id

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncGenerator, Coroutine
    from types import TracebackType

    from ws_chat.client.request import Messages

logger = logging.getLogger("ws_chat.client")

HEARTBEAT: Final = (0.5, 15.0)
"""Seconds between two looks for life at least and at most; in between it is a quarter of the patience."""


class Chat:
    """Answers from one server. `connect` returns it; `async with` or `close` ends it."""

    def __init__(self, url: str, *, api_key: str | None = None, patience: float = 60.0) -> None:
        """See `connect`."""
        self._address = Address(url, api_key)
        self._patience = patience
        self._link: Link | None = None  # the one to ask on
        self._links: set[Link] = set()  # and those that still carry something
        self._connecting = asyncio.Lock()
        self._unreachable: ClientError | None = None
        self._running: dict[str, tuple[Answer, Reply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Connect. Raises ClientError when the server refuses or cannot be reached, RuntimeError after closing."""
        self._check_open()
        await self._ready(Patience(self._patience))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect with one attempt, which takes 10 seconds at most; `async with` goes on trying instead.

        So a person hears at once that there is no server. Raises ClientError, RuntimeError after closing.
        """
        self._check_open()
        async with self._connecting:
            if self._link is None:
                self._link = await self._open(HANDSHAKE[1])

    async def close(self) -> None:
        """Close; once is enough. The server goes on with answers that have not ended for its resume window."""
        self._closed = True
        await asyncio.sleep(0)  # an iteration of `stream` that was left a moment ago sends its cancel
        # First those who would connect again.
        tasks, links = list(self._tasks), list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in links))

    def ask(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: Known | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> Reply:
        """Start an answer and return it at once.

        `messages` is a list of chat messages, or one user message as a string. `previous` continues from an answer with
        the new messages only; one that still runs is interrupted. `parameters` are the other fields of the
        chat-completions request (the OpenAI reference). The same request with the `request_id` of one that is running
        is that one.

        Raises TypeError and ValueError for what cannot be sent as JSON, a bad id and the id of another running request;
        RuntimeError after closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        previous_id = previous.id if isinstance(previous, Known) else previous
        if previous_id is not None:
            previous_id = valid_id(previous_id)
        request = asking(messages, request_id, model=model, previous_id=previous_id, parameters=parameters)
        if running := self._find(request_id):
            answer, reply = running
            if answer.request is None or not is_same(answer.request, request):
                raise ValueError(f"The id {request_id} is that of another answer that is still running.")
            return reply
        return self._begin(Answer(request_id, request), self._find(previous_id))

    def resume(self, request_id: str | uuid.UUID, *, after: int = 0) -> Reply:
        """Follow an answer that was asked for elsewhere, or before this program started, from after a seq on.

        The reply holds what came after that. It fails with NotFoundError when the server has no such answer (any more).
        Raises TypeError and ValueError for a bad id or seq, RuntimeError after closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        if type(after) is not int:
            raise TypeError(f"A seq is a whole number, not {type(after).__name__}.")
        if after < 0:
            raise ValueError(f"A seq is a whole number from 0, not {after}.")
        if running := self._find(request_id):
            answer, reply = running
            if answer.after != after:
                raise ValueError(f"The answer {request_id} is followed from after seq {answer.after} already.")
            return reply
        return self._begin(Answer(request_id, None, after))

    async def cancel(self, request_id: str | uuid.UUID) -> None:
        """Stop an answer by its id, wherever it was asked for. One that has ended is left as it is.

        Raises NotFoundError when the server has no such answer (any more), ClientError, RuntimeError after closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        if running := self._find(request_id):
            return await running[1].cancel()
        patience = Patience(self._patience)
        while True:
            link = await self._ready(patience)
            try:
                return await link.cancel_other(request_id)
            except ConnectionLostError as error:
                await asyncio.sleep(_pause(patience, error))

    async def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: Known | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of an answer as it comes; all else is as with `ask`. Leaving early cancels it."""
        reply = self.ask(messages, model=model, previous=previous, request_id=request_id, **parameters)
        async with reply:
            async for text in reply.texts():
                yield text

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This connection was closed; `connect` makes another.")

    def _find(self, request_id: str | None) -> tuple[Answer, Reply] | None:
        running = self._running.get(request_id or "")
        return None if running is None or running[0].ended else running

    def _begin(self, answer: Answer, previous: tuple[Answer, Reply] | None = None) -> Reply:
        def settle(task: asyncio.Task[None]) -> None:
            closed = ConnectionLostError("The client was closed before the answer had ended.")
            answer.finish(closed if task.cancelled() else task.exception())
            if self._running[answer.id] is running:
                del self._running[answer.id]

        reply = Reply(answer, self._send_cancel)
        self._running[answer.id] = running = (answer, reply)
        # Told from outside: a task that is cancelled before its first step never runs a line of its own.
        self._start(self._drive(answer, previous and previous[0])).add_done_callback(settle)
        return reply

    async def _drive(self, answer: Answer, previous: Answer | None) -> None:
        """Ask for an answer, and for the rest of it, until it has ended."""
        if previous:
            await previous.begun.wait()  # which the server must know before this one
        patience = Patience(self._patience)
        while not answer.ended:
            link = await self._ready(patience)
            if answer.ended:
                return
            seq, began = answer.seq, time.monotonic()
            refusal = await link.carry(answer)
            if answer.ended:
                return
            if answer.cancelling:
                answer.cancel()  # one that was refused is not asked for again
            if answer.seq > seq or (link.lost and patience.counts_as_held(link.alive - began)):
                patience.renew(link.alive)
                continue
            # A server that is there, and gives nothing, is not to be asked again and again at once.
            broken = ConnectionLostError(f"{self._address} breaks off every connection: {link.ending}")
            pause = _pause(patience, refusal or broken)
            if refusal:
                logger.info("%s; asking again in %.1f s", refusal, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answer.over.wait(), pause)

    async def _send_cancel(self, answer: Answer) -> None:
        for link in list(self._links):
            await link.cancel(answer)

    async def _ready(self, patience: Patience) -> Link:
        """Return the socket to ask on, connecting if need be. Raises ClientError, ValueError."""
        async with self._connecting:
            while self._link is None or self._link.leaving or self._link.lost:
                self._check_open()
                if self._unreachable and not patience.left:
                    raise self._unreachable  # while this one waited for its turn
                try:
                    self._link = await self._open(patience.left)
                    self._unreachable = None
                except ClientError as error:
                    self._unreachable = error
                    pause = _pause(patience, error)
                    logger.info("%s; trying again in %.1f s", error, pause)
                    await asyncio.sleep(pause)
            return self._link

    async def _open(self, patience: float) -> Link:
        shortest, longest = HEARTBEAT
        socket = await self._address.open(patience)
        if self._closed:
            await socket.close()
            self._check_open()
        link = Link(socket, heartbeat=min(longest, max(shortest, self._patience / 4)))
        self._links.add(link)
        self._start(link.run()).add_done_callback(lambda _: self._links.discard(link))
        return link

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def connect(url: str, *, api_key: str | None = None, patience: float = 60.0) -> Chat:
    """Return a connection to the server at `url` (`ws://`, `wss://`, `http://` or `https://`).

    `async with connect(…) as chat` connects at once and closes at the end; `chat = connect(…)` connects when it is
    first asked, and is closed with `await chat.close()`.

    A connection that cannot be made, is lost or falls silent is made again, and a request that the server has no room
    for is sent again, for `patience` seconds at most, counted from when all was last well (silence is noticed after a
    second at the earliest). Every answer goes on where it was.

    Raises ValueError when `url` or `api_key` cannot be one.
    """
    return Chat(url, api_key=api_key, patience=patience)


def _pause(patience: Patience, error: ClientError) -> float:
    """Return how many seconds to wait before the next attempt. Raises the error of the last one when there is none."""
    pause = patience.pause(error.retry_after) if error.retryable else None
    if pause is None:
        raise error
    return pause
