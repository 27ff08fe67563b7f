"""A connection to a ws_chat server that repairs itself.

Every request is named with a UUID, so nothing is lost or paid for twice when the socket breaks: what was never
acknowledged is sent again, and what was is resumed after its last seq. One task for each answer does just that, in a
loop; one for each socket hands out its frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from ws_chat.client.errors import AuthenticationError, ConnectionLostError, PermissionDeniedError, ReplyError, told
from ws_chat.client.reply import Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
    from types import TracebackType

logger = logging.getLogger("ws_chat.client")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before the second attempt to connect, and at most; each pause is up to twice the one before, at random."""


class _Link:
    """One socket, and the answers that it carries."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.leaving = False  # the server has said goaway
        self.lost = False
        self._carried: dict[str, tuple[Reply, asyncio.Event]] = {}

    def carry(self, reply: Reply) -> asyncio.Event:
        """Hand the frames of an answer to it from now on. The event is set when no more will come this way."""
        self._carried[reply.id] = (reply, asyncio.Event())
        return self._carried[reply.id][1]

    async def drop(self, reply: Reply) -> None:
        """Carry an answer no more; a socket that the server wants to be rid of is closed after the last one."""
        del self._carried[reply.id]
        if self.leaving and not self._carried:
            await self.socket.close()

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame. On a socket that is lost it is lost, which is told to all that it carries."""
        with contextlib.suppress(ConnectionClosed):
            await self.socket.send(json.dumps(frame, ensure_ascii=False))

    async def cancel(self, reply: Reply) -> None:
        """Ask for the end of an answer, if it is carried here."""
        if reply.id in self._carried:
            await self.send({"type": "cancel", "id": reply.id})

    async def run(self) -> None:
        """Hand out what comes until the socket is lost."""
        try:
            async for message in self.socket:
                self._take(json.loads(message))
        except ConnectionClosed:
            pass
        finally:
            self.lost = True
            for _, gone in self._carried.values():
                gone.set()

    def _take(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "goaway":
            self.leaving = True
        elif frame.get("id") in self._carried:
            reply, gone = self._carried[frame["id"]]
            if frame["type"] == "error" and "seq" not in frame and frame["error"]["code"] == "draining":
                self.leaving = True
                gone.set()  # another server will take it
            else:
                reply.take(frame)


class Chat:
    """Answers from one server. Use it with `async with connect(…) as chat`."""

    def __init__(self, url: str, *, api_key: str | None = None, patience: float = 60.0) -> None:
        """See `connect`."""
        self.url = _socket_url(url)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patience = patience
        self._link: _Link | None = None  # the one to ask on
        self._links: set[_Link] = set()  # and those that still carry something
        self._connecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Connect. Raises ReplyError where the server refuses, OSError where there is none."""
        self._link = await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close. The server goes on with answers that have not ended for its resume window."""
        self._closed = True
        # First those who would connect again.
        tasks, links = list(self._tasks), list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.socket.close() for link in links))

    def ask(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        previous: Reply | str | None = None,
        request_id: str | None = None,
        **parameters: Any,
    ) -> Reply:
        """Start an answer and return it at once.

        `messages` is a list of chat messages, or one user message as a string. `previous` continues from an answer with
        the new messages only; one that still runs is interrupted. `parameters` are the other fields of the
        chat-completions request (the OpenAI reference). Raises RuntimeError when the connection was closed.
        """
        if self._closed:
            raise RuntimeError("this connection was closed")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        request: dict[str, Any] = {"messages": list(messages), "id": request_id or str(uuid.uuid4()), **parameters}
        if model is not None:
            request["model"] = model
        if previous is not None:
            request["previous_id"] = previous if isinstance(previous, str) else previous.id
        reply = Reply(request, self._send_cancel)
        self._start(self._drive(reply))
        return reply

    async def stream(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> AsyncIterator[str]:
        """Yield the text of an answer as it comes; the options are those of `ask`. Leaving early cancels it."""
        reply = self.ask(messages, **options)
        try:
            async for text in reply.texts():
                yield text
        finally:
            await reply.cancel()

    async def _drive(self, reply: Reply) -> None:
        """Ask for an answer, and for the rest of it, until it has ended."""
        progress, pause, asked = time.monotonic(), FIRST_PAUSE, False
        try:
            while not reply.ended:
                seq = reply.seq
                link = await self._ready()
                if reply.cancelling and not asked:
                    reply.never_asked()
                    return
                asked = True
                gone = link.carry(reply)
                await link.send(reply.opening)
                if reply.cancelling:
                    await link.cancel(reply)
                await _first(gone.wait(), reply.over.wait())
                await link.drop(reply)
                if reply.seq > seq:
                    progress, pause = time.monotonic(), FIRST_PAUSE
                elif not reply.ended:
                    # A server that is there, and gives nothing, is not to be asked again and again at once.
                    if time.monotonic() + pause > progress + self._patience:
                        raise ConnectionLostError(f"{self.url} breaks off every connection.")  # noqa: TRY301
                    await asyncio.sleep(pause)
                    pause = _longer(pause)
        except (ReplyError, ConnectionLostError) as error:
            reply.finish(error)
        except asyncio.CancelledError:
            reply.finish(ConnectionLostError("The client was closed before the answer had ended."))
            raise

    async def _send_cancel(self, reply: Reply) -> None:
        for link in list(self._links):
            await link.cancel(reply)

    async def _ready(self) -> _Link:
        """Return the socket to ask on, connecting if need be. Raises ConnectionLostError and ReplyError."""
        deadline = time.monotonic() + self._patience
        async with self._connecting:
            pause = FIRST_PAUSE
            while self._link is None or self._link.leaving or self._link.lost:
                try:
                    self._link = await self._open()
                except (AuthenticationError, PermissionDeniedError):
                    raise
                except (OSError, InvalidHandshake, ReplyError) as error:
                    pause = max(pause, getattr(error, "retry_after", None) or 0)
                    if time.monotonic() + pause > deadline:
                        message = f"{self.url} could not be reached again: {error}"
                        raise ConnectionLostError(message) from error
                    logger.info("%s: %s; trying again in %.1f s", self.url, error, pause)
                    await asyncio.sleep(pause)
                    pause = _longer(pause)
            return self._link

    async def _open(self) -> _Link:
        try:
            socket = await connect_socket(
                self.url, additional_headers=self._headers, max_size=None, compression=None, close_timeout=1
            )
        except InvalidStatus as error:
            raise _refusal(error) from error
        link = _Link(socket)
        self._links.add(link)
        self._start(link.run()).add_done_callback(lambda _: self._links.discard(link))
        return link

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def connect(url: str, *, api_key: str | None = None, patience: float = 60.0) -> Chat:
    """Return a connection to the server at `url` (`ws://`, `wss://`, `http://` or `https://`), for `async with`.

    A connection that is lost is made again, for `patience` seconds at most, and every answer goes on where it was.
    """
    return Chat(url, api_key=api_key, patience=patience)


def _longer(pause: float) -> float:
    return min(LONGEST_PAUSE, pause * random.uniform(1, 2))  # noqa: S311  (jitter, no secret)


def _socket_url(url: str) -> str:
    scheme, host, path, query, _ = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    return urlunsplit((scheme, host, path if path.strip("/") else "/v1/chat/ws", query, ""))


def _refusal(refused: InvalidStatus) -> ReplyError:
    response = refused.response
    try:
        error = json.loads(response.body or b"")["error"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {response.status_code}"
        error = {"type": "server_error", "code": "refused", "message": message, "status": response.status_code}
    retry_after = response.headers.get("Retry-After", "")
    return told(error, float(retry_after) if retry_after.isdecimal() else None)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
