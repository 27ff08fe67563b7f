"""A connection to a ws_chat server that repairs itself.

Every request is named with a UUID, so nothing is lost or paid for twice when a socket breaks: a request that was not
acknowledged is sent again, and an acknowledged one is resumed after its last seq. Each answer has a task that does that
in a loop; each socket has a task that dispatches its frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar

from ws_chat.client.backoff import Backoff
from ws_chat.client.connection import ChatConnection
from ws_chat.client.errors import ClientError, ConnectionLostError
from ws_chat.client.network import HANDSHAKE_TIMEOUT, Address
from ws_chat.client.reply import Reply, ReplyState
from ws_chat.client.request import chat_frame, same_request, valid_epoch, valid_id

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncGenerator, Coroutine
    from types import TracebackType

    from ws_chat.client.request import Messages

logger = logging.getLogger("ws_chat.client")

R = TypeVar("R", bound=ReplyState)
OnRetry: TypeAlias = Callable[[ClientError, float], None]
"""Called before each pause, with the error and the seconds, in the thread of the client's event loop."""

HEARTBEAT_INTERVAL: Final = (0.5, 15.0)
"""Seconds between two pings, at least and at most; in between it is a quarter of the patience."""


class ChatCore(Generic[R]):
    """The common part of `Chat` and `SyncChat`. `new_reply` creates their kind of reply."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        patience: float,
        on_retry: OnRetry | None,
        new_reply: Callable[[str, str | None, int, str | None], R],
    ) -> None:
        self._address = Address(url, api_key)
        self._patience = patience
        self._on_retry = on_retry
        self._new_reply = new_reply
        self._connection: ChatConnection | None = None  # for new requests
        self._connections: set[ChatConnection] = set()  # also those that still carry answers
        self._connecting = asyncio.Lock()
        self._unreachable: ClientError | None = None
        self._running: dict[str, R] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Connect. Raises ClientError when the server refuses or cannot be reached, RuntimeError after closing."""
        self._check_open()
        await self._connect(Backoff(self._patience))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect in a single attempt of at most 10 seconds, so that a person sees soon when there is no server.

        Raises ClientError, RuntimeError after closing.
        """
        self._check_open()
        async with self._connecting:
            if self._connection is None:
                self._connection = await self._open(HANDSHAKE_TIMEOUT[1])

    async def close(self) -> None:
        """Close; calling it again does nothing. The server keeps running answers for its resume window."""
        self._closed = True
        await asyncio.sleep(0)  # an iteration of `stream` that was left a moment ago sends its cancel
        tasks, connections = list(self._tasks), list(self._connections)
        for task in tasks:  # before the connections are closed, because they would connect again
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in connections))

    def ask(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: ReplyState | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> R:
        """Start an answer and return it at once.

        `messages` is a list of chat messages, or one user message as a string. `previous` continues from an answer with
        the new messages only; one that is still running is interrupted. `parameters` are the other fields of the
        chat-completions request (the OpenAI reference). The same request with the `request_id` of one that is running
        returns that one.

        Raises TypeError and ValueError for what cannot be sent as JSON, an invalid id, and an id that another running
        request has; RuntimeError after closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        previous_id = previous.id if isinstance(previous, ReplyState) else previous
        if previous_id is not None:
            previous_id = valid_id(previous_id)
        request = chat_frame(messages, request_id, model=model, previous_id=previous_id, parameters=parameters)
        if reply := self._find(request_id):
            if reply._request is None or not same_request(reply._request, request):
                raise ValueError(f"another answer with the id {request_id} is still running")
            return reply
        return self._start(self._new_reply(request_id, request, 0, None), self._find(previous_id))

    def resume(self, request_id: str | uuid.UUID, *, after: int = 0, epoch: str | None = None) -> R:
        """Follow an answer that was requested elsewhere, or before this program started, from after a seq.

        The reply contains what comes after that. It fails with NotFoundError when the server does not have such an answer,
        and with GenerationGoneError when another answer has its id now. Only `epoch`, which the reply had with its `seq`,
        shows that, so pass both. Raises TypeError and ValueError for an invalid id, seq or epoch, RuntimeError after
        closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        if type(after) is not int:
            raise TypeError(f"after must be an int, got {type(after).__name__}")
        if after < 0:
            raise ValueError(f"after must be 0 or more, got {after}")
        epoch = valid_epoch(epoch)
        if reply := self._find(request_id):
            if reply._after != after:
                raise ValueError(f"the answer {request_id} is already followed from after seq {reply._after}")
            if epoch and reply.epoch and reply.epoch != epoch:
                raise ValueError(f"the answer {request_id} is already followed, with the epoch {reply.epoch}")
            return reply
        return self._start(self._new_reply(request_id, None, after, epoch))

    async def cancel(self, request_id: str | uuid.UUID) -> None:
        """Stop an answer by its id, wherever it was requested. Does nothing when it has ended.

        Raises NotFoundError when the server does not have such an answer, ClientError, RuntimeError after closing.
        """
        self._check_open()
        request_id = valid_id(request_id)
        if reply := self._find(request_id):
            return await reply._cancel()
        backoff = Backoff(self._patience)
        while True:
            connection = await self._connect(backoff)
            try:
                return await connection.cancel_other(request_id)
            except ConnectionLostError as error:
                await asyncio.sleep(backoff.pause(error))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This connection was closed; open another one with `connect`.")

    def _find(self, request_id: str | None) -> R | None:
        reply = self._running.get(request_id or "")
        return None if reply is None or reply.ended else reply

    def _start(self, reply: R, previous: R | None = None) -> R:
        def settle(task: asyncio.Task[None]) -> None:
            closed = ConnectionLostError("The client was closed before the answer ended.")
            reply._finish(closed if task.cancelled() else task.exception())
            if self._running.get(reply.id) is reply:
                del self._running[reply.id]

        self._running[reply.id] = reply
        # A callback, because a task that is cancelled before its first step never runs a line of its own.
        self._create_task(self._follow(reply, previous)).add_done_callback(settle)
        return reply

    async def _follow(self, reply: R, previous: R | None) -> None:
        """Request an answer, and resume it until it has ended."""
        if previous:
            await previous._acknowledged.wait()  # else `previous_id` might be unknown
        backoff = Backoff(self._patience)
        while not reply.ended:
            connection = await self._connect(backoff)
            if reply.ended:
                return
            seq, start = reply.seq, time.monotonic()
            refusal = await connection.carry(reply)
            if reply.ended:
                return
            if reply._cancelling:
                reply._end_unsent()  # a refused request that was cancelled is not sent again
            if reply.seq > seq or (not refusal and backoff.counts_as_held(connection.alive - start)):
                backoff.renew(connection.alive)
                continue
            # Back off from a server that accepts connections and breaks them.
            broken = ConnectionLostError(f"{self._address} breaks off every connection: {connection.close_reason}")
            pause = backoff.pause(refusal or broken)
            if refusal:
                self._report(refusal, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reply._over.wait(), pause)

    def _move(self, old: ChatConnection, deadline: float) -> None:
        """Resume the answers of a connection on another one, as soon as that is open; until then they continue here."""

        async def move() -> None:
            # Without another server within the deadline, they end where they are.
            with contextlib.suppress(ClientError):
                await self._connect(Backoff(min(self._patience, deadline)), report=False)
                old.hand_over()

        self._create_task(move())

    async def _connect(self, backoff: Backoff, *, report: bool = True) -> ChatConnection:
        """Return the connection for new requests; open one if there is none. Raises ClientError, ValueError."""
        while True:
            async with self._connecting:  # for one attempt: a request that waits may have less of its budget left
                connection = self._connection
                if connection and not (connection.leaving or connection.lost):
                    return connection
                self._check_open()
                if self._unreachable and not backoff.left:
                    raise self._unreachable  # the budget was used up while waiting for the lock
                try:
                    self._connection = await self._open(backoff.left)
                    self._unreachable = None
                except ClientError as error:
                    self._unreachable = error
                    pause = backoff.pause(error)
                    if report:
                        self._report(error, pause)
                    await asyncio.sleep(pause)

    async def _open(self, timeout: float) -> ChatConnection:
        shortest, longest = HEARTBEAT_INTERVAL
        socket = await self._address.open(timeout)
        if self._closed:
            await socket.close()
            self._check_open()
        heartbeat = min(longest, max(shortest, self._patience / 4))
        connection = ChatConnection(socket, heartbeat=heartbeat, on_move=self._move)
        self._connections.add(connection)
        self._create_task(connection.run()).add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def _report(self, reason: ClientError, pause: float) -> None:
        # Without `on_retry`, this is the only sign of a program that waits.
        level = logging.INFO if self._on_retry else logging.WARNING
        logger.log(level, "%s; trying again in %.1f s", reason, pause)
        if self._on_retry:
            self._on_retry(reason, pause)

    def _create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Chat(ChatCore[Reply]):
    """Answers from one server. `connect` returns it; `async with` or `close` ends it."""

    def __init__(
        self, url: str, *, api_key: str | None = None, patience: float = 60.0, on_retry: OnRetry | None = None
    ) -> None:
        super().__init__(url, api_key=api_key, patience=patience, on_retry=on_retry, new_reply=Reply)

    async def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: ReplyState | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of an answer as it arrives. Takes what `ask` takes. Leaving early cancels the answer."""
        async with self.ask(messages, model=model, previous=previous, request_id=request_id, **parameters) as reply:
            async for text in reply.texts():
                yield text


def connect(url: str, *, api_key: str | None = None, patience: float = 60.0, on_retry: OnRetry | None = None) -> Chat:
    """Return a connection to the server at `url` (`ws://`, `wss://`, `http://` or `https://`), with a mount prefix if any.

    `async with connect(…) as chat` connects at once and closes at the end; `chat = connect(…)` connects with the first
    request, and `await chat.close()` closes it.

    If the server cannot be reached, falls silent or has no room for a request, the client retries for at most `patience`
    seconds after the last sign of life (silence is noticed after a second at the earliest). Every answer continues where
    it was. `on_retry(error, seconds)` is called before each pause.

    Raises ValueError for an invalid `url` or `api_key`.
    """
    return Chat(url, api_key=api_key, patience=patience, on_retry=on_retry)
