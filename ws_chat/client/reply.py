"""One answer on its way: what has come of it, and how to wait for more. Knows no socket."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ws_chat.client.errors import HistoryGoneError, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Frame = dict[str, Any]


class Reply:
    """An answer. Iterate it for its token frames as they come, `texts` for their text, or await `end`.

    What has come so far is always in `text`, `tool_calls` and `seq`; `status`, `finish_reason`, `model`, `usage` and
    `timing` are known at the end. Raises ReplyError and its kinds when the answer failed, ConnectionLostError when the
    server could not be reached again.
    """

    def __init__(self, request: Frame, cancel: Callable[[Reply], Awaitable[None]]) -> None:
        self.id: str = request["id"]
        self.seq = 0
        self.tool_calls: list[Frame] = []
        self.status: str | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.usage: Frame | None = None
        self.timing: Frame | None = None
        self.over = asyncio.Event()
        """Set at the end, however it came."""
        self.cancelling = False
        self._request = request
        self._cancel = cancel
        self._acknowledged = False
        self._error: Exception | None = None
        self._frames: deque[Frame] = deque()
        self._texts: list[str] = []
        self._changed = asyncio.Event()

    @property
    def text(self) -> str:
        """The text that has come so far."""
        return "".join(self._texts)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.over.is_set()

    def __aiter__(self) -> AsyncIterator[Frame]:
        """Yield the token frames that come from now on, or have come and were not yielded yet."""
        return self._tokens()

    async def texts(self) -> AsyncIterator[str]:
        """Yield the text of the answer, piece by piece."""
        async for frame in self:
            if text := frame.get("content"):
                yield text

    async def end(self) -> Reply:
        """Wait for the end of the answer, and return it."""
        async for _ in self:
            pass
        return self

    async def cancel(self) -> None:
        """Stop the answer: it ends soon after with the status `cancelled`. One that has ended is left as it is."""
        if not self.ended:
            self.cancelling = True
            await self._cancel(self)

    async def _tokens(self) -> AsyncIterator[Frame]:
        while True:
            while self._frames:
                yield self._frames.popleft()
            if self._error:
                raise self._error
            if self.ended:
                return
            self._changed.clear()
            await self._changed.wait()

    # The connection calls these.

    @property
    def opening(self) -> Frame:
        """The frame that asks for what has not come yet. Sent twice, it is paid for once: the id is the same."""
        return {"type": "resume", "id": self.id, "after": self.seq} if self._acknowledged else self._request

    def take(self, frame: Frame) -> None:
        """Take a frame of this answer; one that has come before is passed over."""
        match frame["type"]:
            case "start":
                self._acknowledged = True
                self.model = frame["model"]
            case "token" if frame["seq"] > self.seq:
                self.seq = frame["seq"]
                self._texts.append(frame.get("content") or "")
                _join_calls(self.tool_calls, frame.get("tool_calls") or [])
                self._frames.append(frame)
                self._changed.set()
            case "done":
                for name in ("seq", "status", "finish_reason", "model", "usage", "timing"):
                    setattr(self, name, frame.get(name))
                self.finish()
            case "error" if self._acknowledged and frame["error"]["code"] == "not_found":
                self.finish(HistoryGoneError(frame["error"]))
            case "error":
                self.finish(told(frame["error"]))

    def never_asked(self) -> None:
        """Take the end of an answer that was cancelled before anybody was asked for it."""
        self.status = "cancelled"
        self.finish()

    def finish(self, error: Exception | None = None) -> None:
        """Take the end, or what ended it."""
        if not self.ended:
            self._error = error
            self.over.set()
            self._changed.set()


def _join_calls(calls: list[Frame], pieces: list[Frame]) -> None:
    """Join pieces of tool calls to those that have come, by their `index` (the OpenAI streaming reference)."""
    for piece in pieces:
        index = piece.get("index")
        call = next((call for call in reversed(calls) if index is not None and call.get("index") == index), None)
        if call is None or (piece.get("id") and call.get("id") and piece["id"] != call["id"]):
            calls.append({**piece, "function": dict(piece.get("function") or {})})
            continue
        for name, value in (piece.get("function") or {}).items():
            old = call["function"].get(name)
            if name == "arguments" and old and value:
                call["function"][name] = old + value
            elif value:  # servers repeat what is given once, or send it empty
                call["function"][name] = value
        call.update({key: value for key, value in piece.items() if key != "function" and value})
