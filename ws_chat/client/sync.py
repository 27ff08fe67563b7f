"""The client without async, for scripts and notebooks: the same, on an event loop in a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ws_chat.client.chat import Chat
from ws_chat.client.reply import Known, Reply, answer_of
from ws_chat.client.thread import LoopThread

if TYPE_CHECKING:
    import uuid
    from collections.abc import Coroutine, Generator, Iterator
    from types import TracebackType

    from ws_chat.client.frames import Frame
    from ws_chat.client.request import Messages


class SyncReply(Known):
    """An answer. Iterate it for its token frames as they come, `texts` for their text, or call `end`.

    Every iteration begins at the beginning of the answer. Raises what the async client raises. A block of `with`
    cancels it when it is left early.
    """

    def __init__(self, reply: Reply, thread: LoopThread) -> None:
        super().__init__(answer_of(reply))
        self._reply = reply
        self._thread = thread

    def __iter__(self) -> Iterator[Frame]:
        """Yield the token frames from the first one on."""
        frames, count = self._answer.frames, 0
        while True:
            ended = self.ended  # asked first: the other thread goes on
            while count < len(frames):
                count += 1
                yield frames[count - 1]
            if ended:
                self.end()
                return
            self._wait(self._answer.more(count))

    def texts(self) -> Generator[str, None, None]:
        """Yield the text of the answer from its beginning, piece by piece."""
        for frame in self:
            if text := frame.get("content"):
                yield text

    def begin(self) -> Self:
        """Wait until the server has the request, or never will, and return it."""
        if not self.ended:
            self._wait(self._answer.begun.wait())
        return self

    def end(self) -> Self:
        """Wait for the end of the answer, and return it."""
        if not self.ended:
            self._wait(self._answer.over.wait())
        if self._answer.error:
            raise self._answer.error
        return self

    def cancel(self) -> None:
        """Stop the answer: it ends soon after with the status `cancelled`. One that has ended is left as it is."""
        if not self.ended:
            self._thread.run(self._reply.cancel())

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self._thread.run(coroutine)
        except RuntimeError:  # closed, which is the end of the answer too, and told as that
            if not self.ended:
                raise

    def __enter__(self) -> Self:
        """Return the answer, which is cancelled when the block is left before its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class SyncChat:
    """Answers from one server, for one thread or several. `connect_sync` returns it; `with` or `close` ends it."""

    def __init__(self, url: str, *, api_key: str | None = None, patience: float = 60.0) -> None:
        """See `connect`."""
        self._chat = Chat(url, api_key=api_key, patience=patience)
        self._thread = LoopThread()

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
        """Connect with one attempt, as `Chat.open` does."""
        self._thread.run(self._chat.open())

    def close(self) -> None:
        """Close; once is enough. The server goes on with answers that have not ended for its resume window."""
        self._thread.stop(self._chat.close())

    def ask(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: Known | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> SyncReply:
        """Start an answer and return it at once. What it takes and raises is as with `Chat.ask`."""

        async def ask() -> Reply:
            return self._chat.ask(messages, model=model, previous=previous, request_id=request_id, **parameters)

        return SyncReply(self._thread.run(ask()), self._thread)

    def resume(self, request_id: str | uuid.UUID, *, after: int = 0) -> SyncReply:
        """Follow an answer that was asked for elsewhere, or before this program started, as `Chat.resume` does."""

        async def resume() -> Reply:
            return self._chat.resume(request_id, after=after)

        return SyncReply(self._thread.run(resume()), self._thread)

    def cancel(self, request_id: str | uuid.UUID) -> None:
        """Stop an answer by its id, as `Chat.cancel` does."""
        self._thread.run(self._chat.cancel(request_id))

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        previous: Known | str | uuid.UUID | None = None,
        request_id: str | uuid.UUID | None = None,
        **parameters: Any,
    ) -> Generator[str, None, None]:
        """Yield the text of an answer as it comes; all else is as with `ask`. Leaving early cancels it."""
        reply = self.ask(messages, model=model, previous=previous, request_id=request_id, **parameters)
        with reply:
            yield from reply.texts()


def connect_sync(url: str, *, api_key: str | None = None, patience: float = 60.0) -> SyncChat:
    """Return a connection as `connect` does, to be used without async: with `with`, or closed with `close`."""
    return SyncChat(url, api_key=api_key, patience=patience)
