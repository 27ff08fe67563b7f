"""The interface of stores of append-only logs. The log is the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from ws_chat.protocol.frames import DIGEST_SIZE, Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limits.aio.storage import Storage

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.errors import ErrorInfo
    from ws_chat.protocol.frames import Start, Terminal, Token
    from ws_chat.stores.turns import MayGoOn

    OnEnd: TypeAlias = Callable[[Terminal], None]
    """Called with the terminal frame that a log has ended with."""
    Wake: TypeAlias = Callable[[int, Sequence[Delta]], None]
    """Called with the seq of the log's last delta, and the deltas just written. These are empty after the terminal frame or a
    fault, and where a log with very many readers announces several writes at once."""


HEAD_LIMIT: Final = 4096
"""Bytes that are kept of the request of a generation that failed before its first delta."""


class GenerationKey(NamedTuple):
    """The name of a generation inside the server. `owner`: its principal; for an unnamed one, `<principal>/<connection>`."""

    owner: str
    id: str
    named: bool

    @property
    def principal(self) -> str:
        return self.owner.partition("/")[0]


class LogEndedError(Exception):
    """The log already has its terminal frame. Nothing was written."""


class LogExistsError(Exception):
    """There already is a log with this key. Nothing was created."""


def failed_early(last: int, terminal: Terminal) -> bool:
    """Whether a generation failed before its first delta. Of such a generation, only the error and `rest_of` its request are
    kept.

    So failing requests, which cost nothing, neither evict answers that were paid for nor fill a shared store. The digest
    still detects another request under the same id.
    """
    return last == 0 and isinstance(terminal, Failed)


def head_of(request: bytes) -> bytes:
    """Return a stored request without its messages. A line break ends what is before them: JSON contains none."""
    return request[: request.find(b"\n", DIGEST_SIZE) + 1 or DIGEST_SIZE]


def rest_of(request: bytes) -> bytes:
    """Return what is kept of the request of a generation that `failed_early`: its head, unless that is large."""
    head = head_of(request)
    return head if len(head) <= HEAD_LIMIT else head[:DIGEST_SIZE] + b"{}\n"


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
        """The request, as `ws_chat.relay.conversation` stores it: first the DIGEST_SIZE bytes of its digest.

        After an end that `failed_early`, `rest_of` that.
        """

    @property
    def last(self) -> int:
        """The seq of the last delta, 0 when there is none."""

    @property
    def terminal(self) -> Terminal | None:
        """The last frame, once there is one."""

    @property
    def fault(self) -> ErrorInfo | None:
        """Why it cannot be read now, although it has no terminal frame: its store cannot be reached."""

    @property
    def size(self) -> int:
        """Bytes of its deltas."""

    shared: Token | None
    """The last token frame that a reader made, after the seq `shared_after`: other readers at that position send the same one.
    Cleared when the last watcher is removed."""
    shared_after: int

    may_go_on: MayGoOn
    """Called by a reader that has sent a frame and has more (`Turns.may_go_on`)."""

    def after(self, seq: int, limit: int) -> Sequence[Delta]:
        """Return at most `limit` deltas after `seq`; perhaps fewer than there are, but none only at the end."""

    def append(self, deltas: Sequence[Delta]) -> None:
        """Add deltas, at least one, and wake the readers. Raises LogEndedError after the end."""

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        """Add the terminal frame, wake the readers, and call `on_end` with it: at once, or in a shared store once the frame is
        stored. If another process has ended the log there, that process's frame counts.

        Raises LogEndedError if `end` was called before.
        """

    def replace_request(self, request: bytes) -> None:
        """Store another request, before the first delta."""

    def interrupt(self, fault: ErrorInfo) -> None:
        """Set `fault` and wake the readers: they cannot read on now."""

    def watch(self, wake: Wake) -> None:
        """Call `wake` after every write, until `unwatch`. It must not block and must not raise.

        Very many readers are woken in several turns of the event loop, the first ones at once. `watch` and `unwatch` may be
        called from within a `wake`: a removed reader may still be woken by that write, an added one is not.
        """

    def unwatch(self, wake: Wake) -> None:
        """Stop calling `wake`; does nothing if it was not called."""


class RunningGenerations(Protocol):
    """The generations that run in this process, as a shared store needs them for other processes."""

    def cancel(self, key: GenerationKey) -> bool:
        """Cancel a generation; return whether it runs in this process."""

    def add_remote_reader(self, key: GenerationKey) -> None:
        """Count all readers of a generation in other processes as one."""

    def remove_remote_reader(self, key: GenerationKey) -> None:
        """Stop counting readers in other processes."""


class Store(Protocol):
    """Keeps logs by key: until their end, and for a retention time after it.

    If ended logs do not fit, those of the principal that keeps most are removed first.

    A shared store raises ChatError (`overloaded`) while it cannot be reached; the generations of this process go on.
    Logs of unnamed generations never leave the process.
    """

    @property
    def available(self) -> bool:
        """Whether the store can be reached."""

    @property
    def shared(self) -> bool:
        """Whether other processes serve the named generations of this one."""

    @property
    def counters(self) -> Storage | None:
        """Where all processes that share this store count requests; None: each counts alone."""

    async def open(self, running: RunningGenerations) -> None:
        """Start to serve other processes."""

    async def create(self, key: GenerationKey, start: Start, request: bytes) -> Log:
        """Create a log. Raises LogExistsError."""

    async def get(self, key: GenerationKey, after: int = 0) -> Log | None:
        """Return a log, or None if it is unknown or was removed.

        If another process writes the log, wait for the copy to reach the seq `after`, for a bounded time.
        """

    async def cancel(self, key: GenerationKey) -> None:
        """If another process writes the log, ask it to cancel the generation, until it has ended."""

    def remove(self, key: GenerationKey) -> None:
        """Remove a log of this process; does nothing if it is unknown. Other processes may still find it for a moment."""

    async def forget(self, key: GenerationKey) -> None:
        """Remove the log of a named generation that has ended, at once in this process and soon in others.

        Its readers get it to its end. Does nothing if it is unknown.
        """

    async def close(self) -> None:
        """Stop. Logs that other processes can read are kept for them."""
