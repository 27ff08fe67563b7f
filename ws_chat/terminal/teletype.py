"""An answer on a terminal that can only type on: no cursor moves, no colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ws_chat.terminal.visible import visible

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from ws_chat.client.frames import Frame


class Teletype:
    """One answer, as `Screen` has it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._notice = ""
        self._in_line = False

    @property
    def notice(self) -> str:
        """What is waited for, said once."""
        return self._notice

    @notice.setter
    def notice(self, text: str) -> None:
        if text and text != self._notice:
            self._end_line()
            self._write(f"({visible(text)})\n")
        self._notice = text

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_line()

    def take(self, frame: Frame) -> None:
        """Take a token frame."""
        self._notice = ""
        if text := frame.get("content") or frame.get("refusal"):
            self._in_line = not text.endswith("\n")
            self._write(visible(text))

    def _end_line(self) -> None:
        if self._in_line:
            self._in_line = False
            self._write("\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
