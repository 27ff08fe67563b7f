"""An answer on the screen while it comes: above what is settled, below what is not, drawn 15 times a second at most."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, Self

from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from ws_chat.terminal.growing import Growing
from ws_chat.terminal.markdown import Line, lines_of, markdown, thoughts
from ws_chat.terminal.visible import visible

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, ConsoleOptions, RenderResult

    from ws_chat.client.frames import Frame

INTERVAL: Final = 1 / 15
"""Seconds between two drawings, at least."""
SHARE: Final = 0.2
"""Of the time, at most this goes into drawing, so that a long block does not hold up what comes."""


class Screen:
    """One answer. It is drawn by a task of its own until the block ends."""

    def __init__(self, console: Console) -> None:
        self.notice = ""
        """What is waited for, if it is not the model."""
        self._console = console
        self._growing = _Lines([])
        self._live = Live(
            self._growing,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._spinner = Spinner("dots", style="dim")
        self._part: Growing | None = None
        self._kind = ""
        self._drawing: asyncio.Task[None] | None = None
        self._changed = False

    async def __aenter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        self._drawing = asyncio.create_task(self._draw_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._drawing  # noqa: S101  (it was entered)
        self._drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._drawing
        self._finish()
        self._live.stop()

    def take(self, frame: Frame) -> None:
        """Take a token frame."""
        self.notice = ""
        self._add("reasoning", frame.get("reasoning_content") or "")
        self._add("content", frame.get("content") or frame.get("refusal") or "")

    def _add(self, kind: str, text: str) -> None:
        if not text:
            return
        if kind != self._kind:
            self._finish()
            self._kind = kind
            self._part = Growing(self._console, markdown if kind == "content" else thoughts)
        assert self._part  # noqa: S101  (just made)
        self._part.add(text)
        self._changed = True

    def _finish(self) -> None:
        lines = self._part.end() if self._part else []
        if lines and self._kind == "reasoning":
            lines.append([])
        self._part, self._kind = None, ""
        self._show(lines, [])

    async def _draw_on(self) -> None:
        while True:
            began = time.monotonic()
            if self._changed or self.notice or not self._part:  # the last two: the spinner turns
                self._changed = False
                self._draw()
            took = time.monotonic() - began
            await asyncio.sleep(max(INTERVAL, took / SHARE))

    def _draw(self) -> None:
        settled: list[Line] = []
        growing: list[Line] = []
        if self._part:
            settled = self._part.settle()
            given, growing = self._part.growing(max(1, self._console.height - 3))
            settled += given
        if self.notice or not self._part:
            self._spinner.update(text=Text(visible(self.notice), style="dim"))
            growing += lines_of(self._spinner, self._console, self._console.width)[:2]
        self._show(settled, growing)

    def _show(self, settled: list[Line], growing: list[Line]) -> None:
        self._growing.lines = growing
        if settled:  # which draws what grows anew below it
            self._console.print(_Lines(settled, ended=True), end="")
        else:
            self._live.refresh()


class _Lines:
    """Lines as they are."""

    def __init__(self, lines: list[Line], *, ended: bool = False) -> None:
        self.lines = lines
        self._ended = ended

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for place, line in enumerate(self.lines, 1):
            yield from line
            if self._ended or place < len(self.lines):
                yield Segment.line()
