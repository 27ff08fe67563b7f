"""The client without async, for scripts and notebooks: the same, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ws_chat.client.chat import Chat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
    from types import TracebackType

    from ws_chat.client.reply import Reply

T = TypeVar("T")


class SyncReply:
    """An answer: iterate it for its token frames, or `texts` for their text; `reply` is what is known of it."""

    def __init__(self, reply: Reply, chat: SyncChat) -> None:
        self.reply = reply
        self._chat = chat

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield token frames as they come. Raises what the async client raises."""
        return self._chat.each(aiter(self.reply))

    def texts(self) -> Iterator[str]:
        """Yield the text of the answer, piece by piece."""
        return self._chat.each(self.reply.texts())

    def end(self) -> Reply:
        """Wait for the end of the answer; return what is known of it."""
        return self._chat.wait(self.reply.end())

    def cancel(self) -> None:
        """Stop the answer."""
        self._chat.wait(self.reply.cancel())


class SyncChat:
    """Answers from one server. Use it with `with connect_sync(…) as chat`, in one thread or several."""

    def __init__(self, url: str, *, api_key: str | None = None, patience: float = 60.0) -> None:
        """See `connect_sync`."""
        self._chat = Chat(url, api_key=api_key, patience=patience)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ws_chat client", daemon=True)

    def __enter__(self) -> Self:
        """Connect. Raises ReplyError where the server refuses, OSError where there is none."""
        self._thread.start()
        try:
            self.wait(self._chat.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        try:
            self.wait(self._chat.__aexit__(kind, error, traceback))
        finally:
            self._stop()

    def ask(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> SyncReply:
        """Start an answer and return it at once; the options are those of `Chat.ask`."""
        if isinstance(previous := options.get("previous"), SyncReply):
            options["previous"] = previous.reply

        async def ask() -> Reply:
            return self._chat.ask(messages, **options)

        return SyncReply(self.wait(ask()), self)

    def stream(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str]:
        """Yield the text of an answer as it comes. Leaving early cancels it."""
        reply = self.ask(messages, **options)
        try:
            yield from reply.texts()
        finally:
            reply.cancel()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop and return its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a Ctrl-C here must not leave it running there
            raise

    def each(self, values: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an async iterator yields."""

        async def following() -> tuple[T] | None:
            async for value in values:
                return (value,)
            return None

        while (following_one := self.wait(following())) is not None:
            yield following_one[0]

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def connect_sync(url: str, *, api_key: str | None = None, patience: float = 60.0) -> SyncChat:
    """Return a connection for `with`; `url`, `api_key` and `patience` are those of `connect`."""
    return SyncChat(url, api_key=api_key, patience=patience)
