"""An answer, which the connection that carries it fills in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, cast

from ws_chat.client.errors import GONE_CODE, error_from, history_gone
from ws_chat.client.request import resume_frame
from ws_chat.protocol.deltas import ToolCalls
from ws_chat.protocol.types import TokenFrame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
    from types import TracebackType

    from ws_chat.client.connection import ChatConnection
    from ws_chat.protocol.types import Timing, ToolCall, Usage

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed"]
Frame: TypeAlias = TokenFrame
Message: TypeAlias = dict[str, Any]
"""A chat message. A dict, so that it can be appended to a message list."""

_TEXTS: Final = ("content", "reasoning_content", "refusal")
_SHOWN: Final = 40
"""Characters of an answer in its repr."""


class ReplyState:
    """The state of an answer, and its transitions, which the client calls in its event loop (the private methods).

    Attributes may be read from any thread.
    """

    def __init__(self, request_id: str, request: str | None, after: int = 0, epoch: str | None = None) -> None:
        """`request` is the encoded chat frame; None follows an answer that was requested elsewhere."""
        self.id = request_id
        self.seq = after
        """The seq of the last frame received: `resume` continues after it."""
        self.epoch = epoch
        """The epoch of the generation, which `resume` takes with `seq`: None before the server has accepted it."""
        self.status: Status = "running"
        self.error: BaseException | None = None
        """Why it failed."""
        self.model: str | None = None
        """The requested model; at the end, the model that the upstream named."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.start_frame: Mapping[str, Any] | None = None
        """The start frame that accepted it."""
        self.end_frame: Mapping[str, Any] | None = None
        """The terminal frame, or the error frame that refused the request."""
        self._request = request
        self._after = after
        self._frames: list[Frame] = []
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._tool_calls = ToolCalls()
        self._sent = False  # the server may have the request, and has not refused it
        self._accepted = False
        self._cancelling = False
        self._carrier: ChatConnection | None = None
        self._acknowledged = asyncio.Event()  # the server has accepted the request, or never will
        self._over = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    @property
    def text(self) -> str:
        return "".join(self._texts["content"])

    @property
    def reasoning(self) -> str:
        """The reasoning (`reasoning_content`) received so far, where the model shows it."""
        return "".join(self._texts["reasoning_content"])

    @property
    def refusal(self) -> str:
        """The model's refusal to answer, received so far."""
        return "".join(self._texts["refusal"])

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls received so far, each joined from its pieces."""
        return self._tool_calls.result()

    @property
    def message(self) -> Message:
        """The answer so far as an assistant's message, to append to a message list."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.refusal:
            message["refusal"] = self.refusal
        if calls := self.tool_calls:
            message["content"] = self.text or None
            message["tool_calls"] = [
                {"id": call.get("id", ""), "type": call.get("type", "function"), "function": call.get("function", {})}
                for call in calls
            ]
        return message

    def __repr__(self) -> str:
        text = self.text
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        return f"<{type(self).__name__} {self.id} {self.status}, seq {self.seq}: {text!r}>"

    @property
    def _opening(self) -> str:
        """The frame that requests what is missing. Sent twice, it is paid for once, because the id is the same."""
        if self._accepted or self._request is None:
            return resume_frame(self.id, self.seq, self.epoch)
        return self._request

    def _receive(self, frame: Mapping[str, Any]) -> None:
        """Apply a frame of this answer. A token frame whose seq is not above the last one is a repetition."""
        match frame["type"]:
            case "start":
                if not self._accepted:
                    self.start_frame = frame
                self.epoch = frame.get("epoch") or self.epoch
                self._accepted = True
                self.model = frame["model"]
                self._acknowledged.set()
            case "token" if frame["seq"] > self.seq:
                self.seq = frame["seq"]
                for name, pieces in self._texts.items():
                    if isinstance(piece := frame.get(name), str):
                        pieces.append(piece)
                if isinstance(calls := frame.get("tool_calls"), list):
                    self._tool_calls.add(calls)
                self._frames.append(cast("Frame", frame))
                self._changed.set()
            case "done":
                self.end_frame = frame
                for name in ("seq", "status", "finish_reason", "model", "usage", "timing"):
                    setattr(self, name, frame.get(name))
                self._finish()
            case "error":
                self.end_frame = frame
                self.seq = frame["seq"]
                self._finish(error_from(frame["error"]))

    def _refuse(self, error: Mapping[str, Any]) -> None:
        """End with the error object of a refusal."""
        self.end_frame = {"type": "error", "id": self.id, "error": error}
        gone = error["code"] in ("not_found", GONE_CODE) or error.get("param") == "after"
        self._finish(history_gone(error) if self._accepted and gone else error_from(error))

    def _restart(self) -> bool:
        """Start again, because the id names another generation now. Return False where anything was received.

        The text of two generations is never joined. A cancelled reply ends: the other generation is not its own.
        """
        if self.seq:
            return False
        if self._cancelling:
            self.status = "cancelled"
            self._finish()
        self.epoch = None
        self._accepted = False
        return True

    async def _cancel(self) -> None:
        if not self.ended:
            self._cancelling = True
            self._end_unsent()
            if self._carrier:
                await self._carrier.cancel(self)

    def _end_unsent(self) -> None:
        """End a cancelled answer whose request was not sent, or was refused."""
        if not (self._sent or self._accepted or self._request is None or self.ended):
            self.status = "cancelled"
            self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        if not self.ended:
            if error:
                self.error, self.status = error, "failed"
            self._request = ""  # it may be large, and a reply may be kept for long
            self._acknowledged.set()
            self._over.set()
            self._changed.set()

    async def _more(self, count: int) -> None:
        """Wait until there are more token frames than `count`, or the end."""
        while len(self._frames) <= count and not self.ended:
            self._changed.clear()
            await self._changed.wait()


class Reply(ReplyState):
    """An answer. Iterate it for its token frames as they arrive, `texts` for their text, or await it for its end.

    Every iteration starts at the beginning of the answer. Raises ReplyError and its subclasses when the answer failed,
    ConnectionLostError when the server could not be reached again. Leaving its `async with` block early cancels it.
    """

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Yield the token frames from the first one on."""
        count = 0
        while True:
            while count < len(self._frames):
                count += 1
                yield self._frames[count - 1]
            if self.error:
                raise self.error
            if self.ended:
                return
            await self._more(count)

    async def texts(self) -> AsyncGenerator[str, None]:
        """Yield the text from its beginning, piece by piece."""
        async for frame in self:
            if isinstance(text := frame.get("content"), str) and text:
                yield text

    async def begin(self) -> Self:
        """Wait until the server has accepted the request, or never will; from then on `model` is known."""
        await self._acknowledged.wait()
        return self

    async def end(self) -> Self:
        """Wait for the end of the answer. Giving up the wait does not cancel the answer."""
        await self._over.wait()
        if self.error:
            raise self.error
        return self

    def __await__(self) -> Generator[None, None, Self]:
        return self.end().__await__()

    async def cancel(self) -> None:
        """Stop the answer: it ends soon after with the status `cancelled`. Does nothing when it has ended."""
        await self._cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._cancel()
