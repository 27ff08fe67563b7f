"""The client without async, for scripts and notebooks, on an event loop in a thread of its own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

from ws_chat.client.chat import ChatCore
from ws_chat.client.reply import ReplyState
from ws_chat.client.thread import LoopThread

if TYPE_CHECKING:
    import uuid
    from collections.abc import Coroutine, Generator, Iterator
    from types import TracebackType

    from ws_chat.client.chat import OnRetry
    from ws_chat.client.reply import Frame
    from ws_chat.client.request import Messages


class SyncReply(ReplyState):
    """An answer. Iterate it for its token frames as they arrive, `texts` for their text, or call `end`.

    Every iteration starts at the beginning. Raises what `Reply` raises. Leaving its `with` block early cancels it.
    """

    def __init__(
        self, thread: LoopThread, request_id: str, request: str | None, after: int = 0, epoch: str | None = None
    ) -> None:
        super().__init__(request_id, request, after, epoch)
        self._thread = thread

    def __iter__(self) -> Iterator[Frame]:
        """Yield the token frames from the first one on."""
        count = 0
        while True:
            ended = self.ended  # read first: the other thread goes on
            while count < len(self._frames):
                count += 1
                yield self._frames[count - 1]
            if ended:
                self.end()
                return
            self._wait(self._more(count))

    def texts(self) -> Generator[str, None, None]:
        """Yield the text from its beginning, piece by piece."""
        for frame in self:
            if isinstance(text := frame.get("content"), str) and text:
                yield text

    def begin(self) -> Self:
        """Wait until the server has accepted the request, or never will; from then on `model` is known."""
        if not self.ended:
            self._wait(self._acknowledged.wait())
        return self

    def end(self) -> Self:
        if not self.ended:
            self._wait(self._over.wait())
        if self.error:
            raise self.error
        return self

    def cancel(self) -> None:
        """Stop the answer: it ends soon after with the status `cancelled`. Does nothing when it has ended."""
        if not self.ended:
            self._thread.run(self._cancel())

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self._thread.run(coroutine)
        except RuntimeError:  # the client was closed, which ends the answer too: that is the error to raise
            if not self.ended:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class SyncChat:
    """Answers from one server, for one thread or several. `connect_sync` returns it; `with` or `close` ends it."""

    def __init__(
        self, url: str, *, api_key: str | None = None, patience: float = 60.0, on_retry: OnRetry | None = None
    ) -> None:
        self._thread = LoopThread()
        new_reply = functools.partial(SyncReply, self._thread)
        self._chat = ChatCore(url, api_key=api_key, patience=patience, on_retry=on_retry, new_reply=new_reply)

    def __enter__(self) -> Self:
        """Connect. Raises ClientError when the server refuses or cannot be reached, RuntimeError after closing."""
        try:
            self._thread.run(self._chat.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connect in one attempt, as `Chat.open` does."""
        self._thread.run(self._chat.open())

    def close(self) -> None:
        """Close; calling it again does nothing. The server keeps running answers for its resume window."""
        self._thread.stop(self._chat.close())

    def ask(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: ReplyState | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> SyncReply:
        """Start an answer and return it at once. Takes and raises what `Chat.ask` does."""

        async def ask() -> SyncReply:
            return self._chat.ask(messages, model=model, previous=previous, request_id=request_id, **parameters)

        return self._thread.run(ask())

    def resume(self, request_id: str | uuid.UUID, *, after: int = 0, epoch: str | None = None) -> SyncReply:
        """Follow an answer that was requested elsewhere, or before this program started, as `Chat.resume` does."""

        async def resume() -> SyncReply:
            return self._chat.resume(request_id, after=after, epoch=epoch)

        return self._thread.run(resume())

    def cancel(self, request_id: str | uuid.UUID) -> None:
        """Stop an answer by its id, as `Chat.cancel` does."""
        self._thread.run(self._chat.cancel(request_id))

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: ReplyState | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> Generator[str, None, None]:
        """Yield the text of an answer as it arrives. Takes what `ask` takes. Leaving early cancels the answer."""
        with self.ask(messages, model=model, previous=previous, request_id=request_id, **parameters) as reply:
            yield from reply.texts()


def connect_sync(
    url: str, *, api_key: str | None = None, patience: float = 60.0, on_retry: OnRetry | None = None
) -> SyncChat:
    """Return a connection as `connect` does, without async: use `with`, or `close` it.

    `on_retry` is called in the client's own thread.
    """
    return SyncChat(url, api_key=api_key, patience=patience, on_retry=on_retry)
