"""One answer on its way: what has come of it, and how to wait for more. Knows no socket.

The connection drives it; those who asked hold a Reply, which shows it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from ws_chat.client.errors import history_gone, told
from ws_chat.client.request import resuming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ws_chat.client.frames import Frame, Status
    from ws_chat.protocol.types import Timing, ToolCall, Usage

_TEXTS: Final = ("content", "reasoning_content", "refusal")


class Answer:
    """All that is known of an answer. `request` is the encoded frame that asks for it, None where one is followed."""

    def __init__(self, request_id: str, request: str | None, after: int = 0) -> None:
        self.id = request_id
        self.after = after
        self.seq = after
        self.request = request
        self.frames: list[Frame] = []
        self.tool_calls: list[ToolCall] = []
        self.status: Status = "running"
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.error: BaseException | None = None
        self.first: Mapping[str, Any] | None = None
        """The start frame that came first."""
        self.last: Mapping[str, Any] | None = None
        """The terminal frame, or the error frame that refused it."""
        self.asked = False
        """Whether the server may have been told of it, and has not refused it."""
        self.acknowledged = False
        self.cancelling = False
        self.begun = asyncio.Event()
        """Set when the server has it, or never will."""
        self.over = asyncio.Event()
        """Set at the end, however it came."""
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.over.is_set()

    def said(self, name: str) -> str:
        """Return what has come so far of a text: `content`, `reasoning_content` or `refusal`."""
        return "".join(self._texts[name])

    @property
    def opening(self) -> str:
        """The frame that asks for what has not come yet. Sent twice, it is paid for once: the id is the same."""
        if self.acknowledged or self.request is None:
            return resuming(self.id, self.seq)
        return self.request

    async def more(self, count: int) -> None:
        """Wait until there are more token frames than `count`, or it has ended."""
        while len(self.frames) <= count and not self.ended:
            self._changed.clear()
            await self._changed.wait()

    def take(self, frame: Mapping[str, Any]) -> None:
        """Take a frame of this answer; one that has come before is passed over."""
        match frame["type"]:
            case "start":
                self.first = self.first or frame
                self.acknowledged = True
                self.model = frame["model"]
                self.begun.set()
            case "token" if frame["seq"] > self.seq:
                self.seq = frame["seq"]
                for name, pieces in self._texts.items():
                    if isinstance(piece := frame.get(name), str):
                        pieces.append(piece)
                _join_calls(cast("list[dict[str, Any]]", self.tool_calls), frame.get("tool_calls") or [])
                self.frames.append(cast("Frame", frame))
                self._changed.set()
            case "done":
                self.last = frame
                for name in ("seq", "status", "finish_reason", "model", "usage", "timing"):
                    setattr(self, name, frame.get(name))
                self.finish()
            case "error":
                self.last = frame
                self.seq = frame["seq"]
                self.finish(told(frame["error"]))

    def refuse(self, error: Mapping[str, Any]) -> None:
        """Take the end of an answer that was asked for and refused."""
        self.last = {"type": "error", "id": self.id, "error": error}
        gone = error["code"] == "not_found" or error.get("param") == "after"
        self.finish(history_gone(error) if self.acknowledged and gone else told(error))

    def cancel(self) -> None:
        """Want no more of it. One that nobody has been asked for has ended with that."""
        self.cancelling = True
        if not (self.asked or self.acknowledged or self.request is None or self.ended):
            self.status = "cancelled"
            self.finish()

    def finish(self, error: BaseException | None = None) -> None:
        """Take the end, or what ended it."""
        if not self.ended:
            if error:
                self.error, self.status = error, "failed"
            self.request = ""  # it may be large, and an answer may be kept for long
            self.begun.set()
            self.over.set()
            self._changed.set()


def _join_calls(calls: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
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
