"""The interface to where generations are kept: a store of append-only logs. The log is the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limits.aio.storage import Storage

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Start, Terminal

    OnEnd: TypeAlias = Callable[[Terminal], None]
    """Called with the terminal frame that a log has ended with."""
    Wake: TypeAlias = Callable[[int, Sequence[Delta]], None]
    """Called with the seq of the log's last delta, and the deltas just written: none with the terminal frame."""


class GenerationKey(NamedTuple):
    """The name of a generation inside the server. A named one belongs to its principal, any other to its connection."""

    owner: str
    id: str
    named: bool


class LogEndedError(Exception):
    """A write to a log that has its terminal frame. Nothing was written."""


class LogExistsError(Exception):
    """There is a log under this key already. Nothing was created."""


class Log(Protocol):
    """One generation's frames: a start, deltas numbered from 1, a terminal frame.

    One upstream writes it; any number of readers read it, each from its own position. A write wakes the readers
    synchronously; there is no queue per reader.
    """

    @property
    def start(self) -> Start:
        """The first frame, with seq 0."""

    @property
    def request(self) -> bytes:
        """The request, as `ws_chat.relay.conversation` stores it."""

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

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        """Add the terminal frame, wake the readers, and call `on_end`: at once, or as soon as the frame is stored.

        Where others may write, the log can end with another frame than the one given. Raises LogEndedError when it
        has ended or is about to.
        """

    def watch(self, wake: Wake) -> None:
        """Call `wake` after every write, until `unwatch`. It must not block and must not raise.

        Both may be called while readers are woken: one that leaves then may be woken by that write all the same, one
        that joins is not.
        """

    def unwatch(self, wake: Wake) -> None:
        """Stop calling `wake`; one that is not called is no error."""


class RunningGenerations(Protocol):
    """The generations that run in this process, as a store needs them on behalf of other processes."""

    def cancel(self, key: GenerationKey) -> bool:
        """Cancel a generation; return whether it runs here."""

    def add_remote_reader(self, key: GenerationKey) -> None:
        """Count all readers of a generation in other processes as one."""

    def remove_remote_reader(self, key: GenerationKey) -> None:
        """Stop counting the readers in other processes."""


class Store(Protocol):
    """Keeps logs by key: until their end, and for a retention time after it.

    A store that other processes share raises ChatError (`overloaded`) while it cannot be reached; generations of this
    process run on, and logs that are not named never leave it.
    """

    @property
    def available(self) -> bool:
        """Whether it can be reached."""

    @property
    def counters(self) -> Storage | None:
        """Where all who share this store count requests; None: each counts alone."""

    async def open(self, running: RunningGenerations) -> None:
        """Start to serve the requests of other processes."""

    async def create(self, key: GenerationKey, start: Start, request: bytes) -> Log:
        """Open a log. Raises LogExistsError, also when another caller was just faster."""

    async def get(self, key: GenerationKey, after: int = 0) -> Log | None:
        """Return a log, or None when it is not kept (any more).

        A copy of a log that another process writes is given a moment to reach the seq `after`.
        """

    async def cancel(self, key: GenerationKey) -> None:
        """Ask the process that writes a log to cancel its generation, if that is another process."""

    def remove(self, key: GenerationKey) -> None:
        """Remove a log, at once here and soon elsewhere; one that is not kept is no error."""

    async def close(self) -> None:
        """Stop, and forget all logs."""
