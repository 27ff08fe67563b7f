"""What a caller holds of an answer: what has come of it, and how to follow, await or cancel it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
    from types import TracebackType

    from ws_chat.client.answer import Answer
    from ws_chat.client.frames import Frame, Message, Status
    from ws_chat.protocol.types import Timing, ToolCall, Usage


class Known:
    """What is known of an answer by now."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    @property
    def id(self) -> str:
        """The id of the request, by which the answer can be resumed and continued from."""
        return self._answer.id

    @property
    def seq(self) -> int:
        """The seq of the last frame that has come, to resume after."""
        return self._answer.seq

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._answer.ended

    @property
    def status(self) -> Status:
        """`running`, or how it ended: `completed`, `cancelled` or `failed`."""
        return self._answer.status

    @property
    def error(self) -> BaseException | None:
        """What it failed with."""
        return self._answer.error

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return self._answer.said("content")

    @property
    def reasoning(self) -> str:
        """The reasoning (`reasoning_content`) that has come so far, where the model shows it."""
        return self._answer.said("reasoning_content")

    @property
    def refusal(self) -> str:
        """The words with which the model refuses to answer, as far as they have come."""
        return self._answer.said("refusal")

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls that have come so far, each joined from its pieces."""
        return self._answer.tool_calls

    @property
    def message(self) -> Message:
        """What was said so far as an assistant's message, for a message list of one's own."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.refusal:
            message["refusal"] = self.refusal
        if self.tool_calls:
            message["content"] = self.text or None
            message["tool_calls"] = [
                {"id": call.get("id", ""), "type": call.get("type", "function"), "function": call["function"]}
                for call in self.tool_calls
            ]
        return message

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped (`stop`, `length`, `tool_calls`, …), known at the end."""
        return self._answer.finish_reason

    @property
    def model(self) -> str | None:
        """The model that was asked; at the end, what it called itself."""
        return self._answer.model

    @property
    def usage(self) -> Usage | None:
        """The tokens used, known at the end, where the upstream tells."""
        return self._answer.usage

    @property
    def timing(self) -> Timing | None:
        """How long it took, in milliseconds, known at the end."""
        return self._answer.timing

    def __repr__(self) -> str:
        text = self.text
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        return f"<{type(self).__name__} {self.id} {self.status}, seq {self.seq}: {text!r}>"


_SHOWN = 40
"""Characters of an answer in its repr."""


class Reply(Known):
    """An answer. Iterate it for its token frames as they come, `texts` for their text, or await it for its end.

    Every iteration begins at the beginning of the answer, so any number of them see all of it. What has come so far is
    always in `text`, `tool_calls` and so on. Raises ReplyError and its kinds when the answer failed,
    ConnectionLostError when the server could not be reached again. A block of `async with` cancels it when it is left
    early.
    """

    def __init__(self, answer: Answer, cancel: Callable[[Answer], Awaitable[None]]) -> None:
        super().__init__(answer)
        self._cancel = cancel

    def __aiter__(self) -> AsyncIterator[Frame]:
        """Yield the token frames from the first one on."""
        return self._frames()

    async def texts(self) -> AsyncGenerator[str, None]:
        """Yield the text of the answer from its beginning, piece by piece."""
        async for frame in self:
            if text := frame.get("content"):
                yield text

    async def begin(self) -> Self:
        """Wait until the server has the request, or never will, and return it; then `model` is known."""
        await self._answer.begun.wait()
        return self

    async def end(self) -> Self:
        """Wait for the end of the answer, and return it. Waiting no longer does not cancel it."""
        await self._answer.over.wait()
        if self._answer.error:
            raise self._answer.error
        return self

    def __await__(self) -> Generator[None, None, Self]:
        """Wait for the end of the answer, as `end` does."""
        return self.end().__await__()

    async def cancel(self) -> None:
        """Stop the answer: it ends soon after with the status `cancelled`. One that has ended is left as it is."""
        if not self.ended:
            self._answer.cancel()
            await self._cancel(self._answer)

    async def __aenter__(self) -> Self:
        """Return the answer, which is cancelled when the block is left before its end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cancel()

    async def _frames(self) -> AsyncGenerator[Frame, None]:
        frames, count = self._answer.frames, 0
        while True:
            while count < len(frames):
                count += 1
                yield frames[count - 1]
            if self._answer.error:
                raise self._answer.error
            if self.ended:
                return
            await self._answer.more(count)


def answer_of(reply: Known) -> Answer:
    """Return what a reply shows."""
    return reply._answer
