"""Keys that are pressed while nobody reads them: not shown, and kept for the line after that."""

from __future__ import annotations

import contextlib
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def keys_unseen() -> Iterator[None]:
    """Show no keys on the terminal of standard input until the block ends; Ctrl-C is still a signal (termios(3)).

    What reads lines changes this for as long as it does. Before and after, keys would be shown in the middle of what
    is drawn, and Enter would become the Ctrl-J that begins a new line.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    changed = termios.tcgetattr(descriptor)
    changed[0] &= ~termios.ICRNL
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
