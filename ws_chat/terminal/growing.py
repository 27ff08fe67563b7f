"""A text that grows at the bottom of a terminal: which lines of it are settled, and which are still drawn anew.

Lines that are settled go into the scrollback, once. The others have to stay on the screen, as nothing above it can be
drawn again: of a long block the first lines are given up before its end, as they are by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ws_chat.terminal.markdown import Line, ends_in_table, last_block, lines_of
from ws_chat.terminal.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType


KEPT: Final = 12
"""Lines that are still drawn, of anything but a table: few, so that a window which is made smaller holds them too."""


class Growing:
    """A text, drawn by `draw`."""

    def __init__(self, console: Console, draw: Callable[[str], RenderableType]) -> None:
        self._console = console
        self._draw = draw
        self._text = ""  # of the blocks that are not settled
        self._given = 0  # how many of their lines have been settled all the same
        self._width = 0
        self._begun = False

    def add(self, text: str) -> None:
        """Add what has come."""
        self._text += visible(text)

    def settle(self) -> list[Line]:
        """Return the lines that are settled now, and were not before."""
        if not (end := last_block(self._text)):
            return []
        lines = self._lines(self._text[:end])
        self._text = self._text[end:]
        return self._done(lines)

    def growing(self, room: int) -> tuple[list[Line], list[Line]]:
        """Return the lines that are given up, and then those that are still drawn, which are at most `room`."""
        lines = self._lines(self._text)[self._given :]
        if ends_in_table(self._text):
            return [], lines[-room:]
        over = len(lines) - min(room, KEPT)
        if over <= 0:
            return [], lines
        self._given += over
        return lines[:over], lines[over:]

    def end(self) -> list[Line]:
        """Return the lines that are left."""
        return self._done(self._lines(self._text))

    def _done(self, lines: list[Line]) -> list[Line]:
        left = lines[self._given :]
        self._given = 0
        self._begun = self._begun or bool(lines)
        return left

    def _lines(self, text: str) -> list[Line]:
        if not self._given:  # otherwise it goes on as it has begun, though the window was resized
            self._width = self._console.width
        if not text.strip():
            return []
        lines = lines_of(self._draw(text), self._console, self._width)
        return [[], *lines] if self._begun else lines
