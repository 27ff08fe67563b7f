"""The seam to where generations are kept: a store of append-only logs. The log is the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.deltas import Delta
    from ws_chat.frames import Start, Terminal

    Wake: TypeAlias = Callable[[int, Sequence[Delta]], None]
    """Takes the seq of the log's last delta, and the deltas that were just written: none with the terminal frame."""


class LogEndedError(Exception):
    """A write to a log that has its terminal frame. Nothing was written."""


class Log(Protocol):
    """One generation's frames: a start, deltas numbered from 1, a terminal frame.

    It is written by one producer and read by any number of readers, each with a position of its own. A write wakes
    the readers synchronously; there is no queue per reader.
    """

    @property
    def start(self) -> Start:
        """The first frame, with seq 0."""

    @property
    def request(self) -> bytes:
        """What was asked for, as `ws_chat.conversation` writes it."""

    @property
    def last(self) -> int:
        """The seq of the last delta, 0 when there is none."""

    @property
    def terminal(self) -> Terminal | None:
        """The last frame, once there is one."""

    @property
    def size(self) -> int:
        """Bytes of its deltas as JSON, once it has ended."""

    def after(self, seq: int, limit: int) -> Sequence[Delta]:
        """Return at most `limit` deltas, from the one after `seq` on."""

    def append(self, deltas: Sequence[Delta]) -> None:
        """Add deltas and wake the readers. Raises LogEndedError after the end."""

    def end(self, terminal: Terminal) -> None:
        """Add the terminal frame and wake the readers. Raises LogEndedError when there is one."""

    def watch(self, wake: Wake) -> None:
        """Call `wake` after every write, until `unwatch`. It must not block and must not raise."""

    def unwatch(self, wake: Wake) -> None:
        """Call `wake` no more."""


class Store(Protocol):
    """Keeps logs by key: for as long as they have no end, and for a time after it."""

    async def create(self, key: str, start: Start, request: bytes) -> Log:
        """Open a log. Raises KeyError when there is one under that key, also if another caller was just faster."""

    async def get(self, key: str) -> Log | None:
        """Return a log, or None when it is not kept (any more)."""

    def remove(self, key: str) -> None:
        """Forget a log, at once here and soon elsewhere; one that is not kept is no error."""

    async def close(self) -> None:
        """Let go of everything."""
