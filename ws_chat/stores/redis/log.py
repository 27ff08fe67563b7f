"""A generation's log in this process: one that is written here, or a copy of one that another replica writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ws_chat.protocol.errors import LOST, RESTORING, UNREACHABLE
from ws_chat.protocol.frames import DIGEST_SIZE, Done, Failed, Start, Terminal, encode
from ws_chat.stores.base import LogEndedError, failed_early, head_of, rest_of
from ws_chat.stores.memory import MemoryLog
from ws_chat.stores.redis.keys import HEAD, MESSAGES, TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.stores.base import GenerationKey, OnEnd, Wake
    from ws_chat.stores.redis.connection import Command
    from ws_chat.stores.redis.keys import Names, Slot

HEADS: Final = 2
"""Entries before the deltas."""
PART: Final = 512
"""Deltas in an entry when a log is written again."""
END_TIMEOUT: Final = 8.0
"""Seconds in which a terminal frame must be stored; then readers get the error that the log cannot be reached."""

_start_of: Final[Callable[[bytes], Start]] = msgspec.json.Decoder(Start).decode
terminal_of: Final[Callable[[bytes], Terminal]] = msgspec.json.Decoder(Done | Failed).decode


def head(start: Start, request: bytes) -> bytes:
    """Return the first entry of a log: `rest_of` its request, and its start frame."""
    return rest_of(request).ljust(DIGEST_SIZE, b"\0") + encode(start)


def body(request: bytes) -> bytes:
    """Return the rest of a request: its messages, after what is too large for `head`."""
    rest = rest_of(request)
    return request[len(rest) if request.startswith(rest) else DIGEST_SIZE :]


def parse_head(fields: dict[bytes, bytes]) -> tuple[Start, bytes]:
    """Return the start frame and the request from the entries before the deltas."""
    rest = head_of(fields[b"head"])
    more = fields.get(b"messages", b"")
    return _start_of(fields[b"head"][len(rest) :]), (rest[:DIGEST_SIZE] if more.startswith(b"{") else rest) + more


def lost(log: MemoryLog) -> Failed:
    """Return the terminal frame of a generation whose replica is dead, with the seq after its last delta."""
    return Failed(log.start.id, log.last + 1, LOST)


def lost_around_seq(generation_id: str) -> tuple[bytes, bytes]:
    """Return the JSON of that frame before and after its seq."""
    before, after = encode(Failed(generation_id, 0, LOST)).split(b'"seq":0', 1)
    return before + b'"seq":', after


def is_lost(terminal: Terminal) -> bool:
    return isinstance(terminal, Failed) and terminal.error.code == LOST.code


class SharedLog(MemoryLog):
    """A log that has a stream in Redis."""

    __slots__ = ("key", "names", "slot")

    def __init__(self, slot: Slot, key: GenerationKey, names: Names, start: Start, request: bytes) -> None:
        super().__init__(start, request, may_go_on=slot.turns.may_go_on)
        self.slot = slot
        self.key = key
        self.names = names

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    def entries(self, terminal: Terminal | None) -> list[Any]:
        """Return all entries of its stream: id, field and value of each."""
        entries: list[Any] = [HEAD, "head", head(self.start, self.request)]
        if not (terminal and failed_early(self.last, terminal)):
            entries += [MESSAGES, "messages", body(self.request)]
        seq = 0
        while deltas := self.after(seq, PART):
            seq += len(deltas)
            entries += [f"1-{seq}", "deltas", b"\n".join(deltas)]
        return [*entries, TERMINAL, "terminal", encode(terminal)] if terminal else entries


class OwnLog(SharedLog):
    """A log that this replica writes. Readers get its deltas at once, and its terminal frame once Redis has stored it."""

    __slots__ = ("_on_end", "_on_ending", "_timer", "ending", "entries_stored", "in_doubt", "read_elsewhere", "stored")

    def __init__(
        self,
        slot: Slot,
        key: GenerationKey,
        names: Names,
        start: Start,
        request: bytes,
        on_ending: Callable[[OwnLog], None],
    ) -> None:
        """`on_ending` is called when there is a terminal frame to be stored."""
        super().__init__(slot, key, names, start, request)
        self._on_ending = on_ending
        self.stored = 0
        """The seq of the last delta that Redis has confirmed."""
        self.entries_stored = HEADS
        self.in_doubt = False
        """Whether Redis may lack entries that it has confirmed, or have entries that it has not confirmed."""
        self.ending: Terminal | None = None
        """The terminal frame to be stored."""
        self.read_elsewhere = False
        self._on_end: OnEnd | None = None
        self._timer: asyncio.TimerHandle | None = None

    def replace_request(self, request: bytes) -> None:
        super().replace_request(request)
        self.entries_stored = 0  # no stream in Redis has this length, so the log is written again
        self.in_doubt = True

    def append(self, deltas: Sequence[Delta]) -> None:
        if self.ending:
            raise LogEndedError
        if self.terminal is None:  # else another replica has ended it, and it is being cancelled
            super().append(deltas)

    def end(self, terminal: Terminal, on_end: OnEnd | None = None) -> None:
        if self.ending:
            raise LogEndedError
        self.ending = terminal
        self._on_end = on_end
        if self.terminal:
            self._report(self.terminal)
        else:
            self._timer = asyncio.get_running_loop().call_later(END_TIMEOUT, self._interrupt)
            self._on_ending(self)

    def show_end(self, terminal: Terminal) -> None:
        """Show the terminal frame that Redis has."""
        if self._timer:
            self._timer.cancel()
        self.fault = None
        super().end(terminal)
        self._report(terminal)

    def _interrupt(self) -> None:
        """End the readers with an error: the terminal frame cannot be stored now."""
        self.interrupt(UNREACHABLE)
        if self.ending:
            self._report(self.ending)

    def _report(self, terminal: Terminal) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end:
            on_end(terminal)

    @property
    def has_news(self) -> bool:
        return self.terminal is None and (self.last > self.stored or self.ending is not None)

    def news(self, retention: int) -> list[Command]:
        """Return the commands that write what Redis has not confirmed."""
        commands: list[Command] = []
        stream = self.names.stream
        if self.last > self.stored:
            deltas: list[Delta] = []
            while more := self.after(self.stored + len(deltas), self.last):
                deltas += more
            commands.append(("XADD", stream, "NOMKSTREAM", f"1-{self.last}", "deltas", b"\n".join(deltas)))
        if self.ending:
            commands.append(("XADD", stream, "NOMKSTREAM", TERMINAL, "terminal", encode(self.ending)))
            commands.append(("PEXPIRE", stream, retention))
            commands.append(("PEXPIRE", self.names.pointer, retention))
            if failed_early(self.last, self.ending):
                commands.append(("XDEL", stream, MESSAGES))
        return commands


class Copy(SharedLog):
    """A copy of a log that another replica writes, or wrote."""

    __slots__ = ("_on_watch", "abandoned", "cancelled", "idle", "renew_at")

    def __init__(
        self,
        slot: Slot,
        key: GenerationKey,
        names: Names,
        start: Start,
        request: bytes,
        on_watch: Callable[[Copy], None],
    ) -> None:
        super().__init__(slot, key, names, start, request)
        self._on_watch = on_watch
        self.abandoned = False
        """Whether its replica is dead, and will not fill gaps."""
        self.cancelled = False
        """Whether this replica has accepted a cancel of it."""
        self.idle = 0
        self.renew_at = 0.0

    def watch(self, wake: Wake) -> None:
        super().watch(wake)
        self._on_watch(self)

    def take(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Add what is new in entries of the stream. Entries after a gap are ignored until it is filled."""
        new: list[Delta] = []
        terminal = None
        for entry, fields in entries:
            kind, _, seq = entry.partition(b"-")
            if kind == b"1":
                deltas = fields[b"deltas"].split(b"\n")
                known = self.last + len(new) - int(seq) + len(deltas)
                if 0 <= known < len(deltas):
                    new += deltas[known:]
            elif kind == b"2":
                if not fields[b"terminal"]:
                    self.interrupt(RESTORING)
                    return
                terminal = terminal_of(fields[b"terminal"])
        if self.terminal:
            return
        if new:
            self.append(new)
        # A Redis that lost its last writes may have fewer deltas of a lost log than this copy: the end that it has counts.
        if terminal and (terminal.seq == self.last + 1 or (is_lost(terminal) and terminal.seq <= self.last)):
            self.end(terminal)
        elif terminal and self.abandoned:
            self.end(lost(self))
