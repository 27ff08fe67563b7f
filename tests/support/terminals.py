"""A terminal that a program runs in: a pseudo-terminal, and an emulator that shows what a person would see."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
from typing import TYPE_CHECKING, TypeVar

import pyte
from support import forked
from support.processes import environment
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")
_DIM = re.compile(rb"(\x1b\[(?:\d+;)*)2((?:;\d+)*m)")


class Terminal:
    """What is on the screen, and what has scrolled out of it."""

    def __init__(self, columns: int, rows: int, *, dim: int | None = None) -> None:
        """`dim` is the colour (ECMA-48, SGR) that stands for dim text, which the emulator does not know."""
        self.raw = b""
        self.process: asyncio.subprocess.Process | forked.Process | None = None
        self.descriptor, self._other = pty.openpty()
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self.screen.write_process_input = lambda answer: os.write(self.descriptor, answer.encode())
        self._stream = pyte.ByteStream(self.screen)
        self._dim = dim
        self._changed = asyncio.Event()
        fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def text(self) -> str:
        """All of it: the scrollback, then the screen."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in (*above, *self.screen.display)).rstrip() + "\n"

    async def start(self, *command: str, real: bool = True, **variables: str) -> None:
        """Run a program, whose controlling terminal this is. Not `real`: it is `ws-chat`, forked."""
        given = environment(**{"TERM": "xterm-256color", **variables})
        env = {name: value for name, value in given.items() if name not in ("COLUMNS", "LINES")}  # pytest-xdist's
        streams = {"stdin": self._other, "stdout": self._other, "stderr": self._other}
        if real:
            self.process = await asyncio.create_subprocess_exec(
                *command, env=env, **streams, preexec_fn=self._take_control
            )
        else:
            self.process = await forked.start(*command, env=env, **streams, in_terminal=True)
        os.close(self._other)
        asyncio.get_running_loop().add_reader(self.descriptor, self._read)

    def type(self, keys: str) -> None:
        """Press keys; Enter is a carriage return, Ctrl-C is \\x03."""
        os.write(self.descriptor, keys.encode())

    async def until(self, pattern: str) -> re.Match[str]:
        """Wait until something on it matches."""
        return await self._until(lambda: re.search(pattern, self.text, re.MULTILINE), repr(pattern))

    async def prompt(self, count: int) -> None:
        """Wait for the prompt number `count`; 1 is the first."""
        await self._until(
            lambda: self.text.endswith("\n›\n") and len(re.findall("^›", self.text, re.MULTILINE)) >= count,
            f"prompt number {count}",
        )

    async def until_at_the_left(self) -> None:
        """Wait until the cursor is at the start of a line."""
        await self._until(lambda: self.screen.cursor.x == 0, "line of its own")

    async def end(self) -> int:
        """Wait for the end of the program, and return its status."""
        assert self.process
        return await self.process.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.descriptor)
        os.close(self.descriptor)

    async def _until(self, found: Callable[[], T], wanted: str) -> T:
        async def look() -> T:
            if result := found():
                return result
            self._changed.clear()
            await self._changed.wait()
            return found()

        try:
            return await until(look, f"{wanted} on the terminal")
        except asyncio.CancelledError:
            print(f"{wanted} is not on the terminal, which shows:\n{self.text}")
            raise

    def _take_control(self) -> None:
        os.setsid()
        fcntl.ioctl(self._other, termios.TIOCSCTTY, 0)  # not 0: uvloop has not put it there yet

    def _read(self) -> None:
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self.descriptor)
            return
        self.raw += data
        self._stream.feed(_DIM.sub(rb"\g<1>%d\2" % self._dim, data) if self._dim else data)
        self._changed.set()


@contextlib.asynccontextmanager
async def terminal(
    *command: str, columns: int = 80, rows: int = 24, real: bool = False, **variables: str
) -> AsyncIterator[Terminal]:
    """Run `ws-chat` in a terminal until the block ends. `real`: started as a person does, not forked."""
    shown = Terminal(columns, rows)
    await shown.start(*command, real=real, **variables)
    assert shown.process
    try:
        yield shown
    finally:
        with contextlib.suppress(ProcessLookupError):
            shown.process.kill()
        await shown.process.wait()
        shown.close()
