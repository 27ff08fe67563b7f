"""An answer on a terminal while it arrives: on a screen whose last lines are redrawn, or typed onto a dumb terminal.

Final lines go into the scrollback, once. The others have to stay on the screen, because lines above it cannot be redrawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, Self

from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from ws_chat.terminal.markdown import Line, ends_in_table, last_block, markdown, render_lines, thoughts
from ws_chat.terminal.messages import text_of, visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from ws_chat.client import Frame

DRAW_INTERVAL: Final = 1 / 15
"""Seconds between two drawings, at least."""
MAX_DRAW_SHARE: Final = 0.2
"""Share of the time that drawing may take: a long block must not delay the frames that arrive."""
LIVE_LINES: Final = 12
"""Lines that are redrawn, except in a table: few, so that they still fit if the window is made smaller."""


class GrowingText:
    """A text that grows at its end, rendered by `render` to lines that are final and lines that may still change."""

    def __init__(self, console: Console, render: Callable[[str], RenderableType]) -> None:
        self._console = console
        self._render = render
        self._text = ""  # of the blocks that may still change
        self._given_up = 0  # lines of them that were made final because there were too many
        self._width = 0
        self._has_lines = False

    def add(self, text: str) -> None:
        self._text += visible(text)

    def settle(self) -> list[Line]:
        """Return the lines of the blocks that have become final."""
        if not (end := last_block(self._text)):
            return []
        lines = self._lines(self._text[:end])
        self._text = self._text[end:]
        return self._rest(lines)

    def live(self, room: int) -> tuple[list[Line], list[Line]]:
        """Return the lines that are made final because there are too many, and at most `room` lines to redraw."""
        lines = self._lines(self._text)[self._given_up :]
        if ends_in_table(self._text):
            return [], lines[-room:]
        over = max(0, len(lines) - min(room, LIVE_LINES))
        self._given_up += over
        return lines[:over], lines[over:]

    def end(self) -> list[Line]:
        return self._rest(self._lines(self._text))

    def _rest(self, lines: list[Line]) -> list[Line]:
        left = lines[self._given_up :]
        self._given_up = 0
        self._has_lines = self._has_lines or bool(lines)
        return left

    def _lines(self, text: str) -> list[Line]:
        if not self._given_up:  # else the block keeps the width of its first lines, though the window was resized
            self._width = self._console.width
        if not text.strip():
            return []
        lines = render_lines(self._render(text), self._console, self._width)
        return [[], *lines] if self._has_lines else lines


class Screen:
    """Draws one answer in a task of its own until the block ends."""

    def __init__(self, console: Console) -> None:
        self.notice = ""
        """Why the client waits, if not for the model."""
        self._console = console
        self._live_lines = _Lines([])
        self._live = Live(
            self._live_lines,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._spinner = Spinner("dots", style="dim")
        self._part: GrowingText | None = None
        self._kind = ""
        self._drawing: asyncio.Task[None] | None = None
        self._changed = False

    async def __aenter__(self) -> Self:
        self._live.start()
        self._drawing = asyncio.create_task(self._keep_drawing())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._drawing  # noqa: S101  (for the type checker)
        self._drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._drawing
        self._end_part()
        self._live.stop()

    def show(self, frame: Frame) -> None:
        self.notice = ""
        self._add("reasoning", text_of(frame, "reasoning_content", "reasoning"))
        self._add("content", text_of(frame, "content", "refusal"))

    def _add(self, kind: str, text: str) -> None:
        if not text:
            return
        if self._part is None or kind != self._kind:
            self._end_part()
            self._kind = kind
            self._part = GrowingText(self._console, markdown if kind == "content" else thoughts)
        self._part.add(text)
        self._changed = True

    def _end_part(self) -> None:
        lines = self._part.end() if self._part else []
        if lines and self._kind == "reasoning":
            lines.append([])
        self._part, self._kind = None, ""
        self._print(lines, [])

    async def _keep_drawing(self) -> None:
        while True:
            start = time.monotonic()
            if self._changed or self.notice or not self._part:  # the last two: the spinner turns
                self._changed = False
                self._draw()
            took = time.monotonic() - start
            await asyncio.sleep(max(DRAW_INTERVAL, took / MAX_DRAW_SHARE))

    def _draw(self) -> None:
        final: list[Line] = []
        live: list[Line] = []
        if self._part:
            final = self._part.settle()
            given_up, live = self._part.live(max(1, self._console.height - 3))
            final += given_up
        if self.notice or not self._part:
            self._spinner.update(text=Text(visible(self.notice), style="dim"))
            live += render_lines(self._spinner, self._console, self._console.width)[:2]
        self._print(final, live)

    def _print(self, final: list[Line], live: list[Line]) -> None:
        self._live_lines.lines = live
        if final:  # printing redraws the live lines below
            self._console.print(_Lines(final, end_last=True), end="")
        else:
            self._live.refresh()


class _Lines:
    """Rendered lines, as rich prints them."""

    def __init__(self, lines: list[Line], *, end_last: bool = False) -> None:
        self.lines = lines
        self._end_last = end_last

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, line in enumerate(self.lines, 1):
            yield from line
            if self._end_last or number < len(self.lines):
                yield Segment.line()


class Teletype:
    """Types one answer onto a terminal that has no cursor movement and no colours. Used as `Screen` is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._notice = ""
        self._in_line = False

    @property
    def notice(self) -> str:
        """Why the client waits. Typed once."""
        return self._notice

    @notice.setter
    def notice(self, text: str) -> None:
        if text and text != self._notice:
            self._end_line()
            self._write(f"({visible(text)})\n")
        self._notice = text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_line()

    def show(self, frame: Frame) -> None:
        self._notice = ""
        if text := text_of(frame, "content", "refusal"):
            self._in_line = not text.endswith("\n")
            self._write(visible(text))

    def _end_line(self) -> None:
        if self._in_line:
            self._in_line = False
            self._write("\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
