"""The seam to where generations are kept: a store of append-only logs. The log is the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limits.aio.storage import Storage

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start, Terminal

    Ended: TypeAlias = Callable[[Terminal], None]
    """Takes the terminal frame that a log has ended with."""
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
        """What was asked for, as `ws_chat.relay.conversation` writes it."""

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

    def end(self, terminal: Terminal, then: Ended | None = None) -> None:
        """Add the terminal frame, wake the readers, and call `then`: at once, or as soon as it is kept.

        Where others may write, the log can end with another frame than the one given. Raises LogEndedError when it
        has ended or is about to.
        """

    def watch(self, wake: Wake) -> None:
        """Call `wake` after every write, until `unwatch`. It must not block and must not raise."""

    def unwatch(self, wake: Wake) -> None:
        """Call `wake` no more."""


class Production(Protocol):
    """What runs in this process, as a store asks it on behalf of others."""

    def cancel(self, key: str) -> None:
        """Cancel a generation, if it runs."""

    def watched(self, key: str, *, begins: bool) -> None:
        """Count those elsewhere who read a generation as one reader, or count it out."""


class Store(Protocol):
    """Keeps logs by key: for as long as they have no end, and for a time after it.

    One that other processes share raises ChatError (`overloaded`) when it cannot be reached; what this process has
    begun runs on, and logs that are not named never leave it.
    """

    @property
    def available(self) -> bool:
        """Whether it can be reached."""

    @property
    def counters(self) -> Storage | None:
        """Where all who share this store count requests; None: everybody alone."""

    async def open(self, production: Production) -> None:
        """Begin to pass on what other processes ask for."""

    async def create(self, key: str, start: Start, request: bytes) -> Log:
        """Open a log. Raises KeyError when there is one under that key, also if another caller was just faster."""

    async def get(self, key: str, after: int = 0) -> Log | None:
        """Return a log, or None when it is not kept (any more).

        A copy of what another process writes is given a moment to come as far as the seq `after`.
        """

    async def cancel(self, key: str) -> None:
        """Ask the process that writes a log to cancel its generation, if that is another one."""

    def remove(self, key: str) -> None:
        """Forget a log, at once here and soon elsewhere; one that is not kept is no error."""

    async def close(self) -> None:
        """Let go of everything."""
