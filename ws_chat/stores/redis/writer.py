"""The logs that this replica writes: created, written in batches, repaired when Redis has lost a part of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from ws_chat.protocol.errors import RESTORING, ChatError
from ws_chat.protocol.frames import encode
from ws_chat.stores.base import LogExistsError
from ws_chat.stores.redis.connection import describe, evaluate, state_arguments
from ws_chat.stores.redis.keys import CREATE, FORGET, REPAIR, TERMINAL, UNDO, cancels
from ws_chat.stores.redis.log import OwnLog, body, head, lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ws_chat.protocol.frames import Start, Terminal
    from ws_chat.stores.base import GenerationKey, RunningGenerations
    from ws_chat.stores.redis.connection import Command, Link
    from ws_chat.stores.redis.keys import Names, Slot

logger = logging.getLogger("ws_chat.redis")

BATCH: Final = 200
"""Logs that are written in one pipeline: encoding it blocks the event loop."""
KEPT: Final = 30.0
"""Seconds for which an ended log is kept here, to be written again if Redis loses it."""
SPARE: Final = 30_000
"""Milliseconds for which a running log is kept beyond the retention time, if its replica no longer renews it."""
RENEWAL: Final = 10.0
"""Seconds between renewals."""


class Writer:
    """The logs of a replica. Ended ones are kept in Redis for `retention` milliseconds."""

    def __init__(self, link: Link, replica: str, retention: int, end_of: Callable[[OwnLog], Any]) -> None:
        """`end_of` reads the terminal frame that a log has in Redis."""
        self._link = link
        self._cancels = cancels(replica)
        self._replica = replica
        self._retention = retention
        self._end_of = end_of
        self._running: dict[str, OwnLog] = {}  # by the key of the pointer
        self._ended: dict[str, tuple[OwnLog, float]] = {}
        self._ending: list[OwnLog] = []
        self._any_ending = asyncio.Event()
        self._any_in_doubt = False
        """Whether an ended log may be in doubt."""
        self._writing = asyncio.Lock()
        # The commands that remove logs, and roll back creates of unknown outcome, by the key of the stream.
        self._undoing: dict[str, Command] = {}
        self._renew_at = 0.0
        self.rounds = 0
        """How often everything new has been written. The lease contains it (see `Follower.reach`)."""
        self.generations: RunningGenerations | None = None

    def get(self, pointer: str) -> OwnLog | None:
        return self._running.get(pointer) or self._ended.get(pointer, (None,))[0]

    async def create(self, slot: Slot, key: GenerationKey, names: Names, start: Start, request: bytes) -> OwnLog:
        """Create a log. Raises LogExistsError, and ChatError (`overloaded`) while it is unsure whether there is one."""
        if self.get(names.pointer):
            raise LogExistsError
        keys = (*slot.keys, names.pointer, names.stream)
        created = names.value, self._expiry, head(start, request), body(request)
        try:
            _, _, found = await self._link.run(slot, CREATE, keys, *state_arguments(), *created)
        except BaseException:
            self._undo(names)
            raise
        if found is None:
            raise ChatError.of(RESTORING)
        if found != names.value:
            raise LogExistsError
        log = self._running[names.pointer] = OwnLog(slot, key, names, start, request, self._note_ending)
        return log

    def remove(self, pointer: str) -> None:
        """Remove a log, in Redis soon."""
        log = self._running.pop(pointer, None) or self._ended.pop(pointer, (None,))[0]
        if log:
            self._undo(log.names)

    def _undo(self, names: Names) -> None:
        self._undoing[names.stream] = evaluate(UNDO, (names.pointer, names.stream), names.value, self._expiry)

    async def undo(self, stream: str | None = None) -> bool:
        """Carry out the waiting removals, or only that of one stream; return whether there was any."""
        chosen = [stream] if stream in self._undoing else [] if stream else list(self._undoing)
        answers = await self._link.pipeline([self._undoing[each] for each in chosen])
        for each, answer in zip(chosen, answers, strict=True):
            if not isinstance(answer, Exception):
                self._undoing.pop(each, None)
        return bool(chosen)

    def doubt(self, slot: Slot) -> None:
        """Compare all logs of a slot with those in Redis at the next write: Redis may have lost data."""
        for log in self._logs():
            log.in_doubt = log.in_doubt or log.slot is slot
        self._any_in_doubt = True

    def forget(self, log: OwnLog) -> None:
        """Stop keeping an ended log."""
        self._ended.pop(log.names.pointer, None)

    async def write_ends(self) -> None:
        """Wait until logs end, and write the rest of them: their readers wait for the terminal frame."""
        await self._any_ending.wait()
        async with self._writing:
            self._any_ending.clear()
            logs, self._ending = self._ending, []
            await self._write_all(logs)

    async def write(self) -> None:
        """Write what is new, and carry out the cancels that other replicas have requested."""
        async with self._writing:
            logs = list(self._running.values())
            await self._cancel()
            await self._write_all(logs)
            for _ in range(3):  # a repaired log is compared again
                doubtful = self._in_doubt()
                for at in range(0, len(doubtful), BATCH):
                    await self._compare(doubtful[at : at + BATCH])
            now = asyncio.get_running_loop().time()
            while self._ended and (oldest := next(iter(self._ended.items())))[1][1] < now:
                del self._ended[oldest[0]]
            if not self._in_doubt() and not any(log.has_news for log in self._running.values()):
                for slot in self._link.slots:
                    slot.written = True
            self.rounds += all(slot.written for slot in self._link.slots)

    async def renew(self) -> None:
        """Keep the running logs from expiring; record which ones another replica reads."""
        await self.undo()
        now = asyncio.get_running_loop().time()
        due = now >= self._renew_at
        self._renew_at = now + RENEWAL if due else self._renew_at
        for slot in self._link.slots:
            logs = [log for log in self._running.values() if log.slot is slot]
            for at in range(0, len(logs), BATCH):
                await self._renew(logs[at : at + BATCH], due=due)

    async def _renew(self, logs: list[OwnLog], *, due: bool) -> None:
        keys = [key for log in logs for key in (log.names.stream, log.names.pointer)]
        renewals: list[Command] = [("PEXPIRE", key, self._expiry) for key in keys] if due else []
        read, *there = await self._link.pipeline([("MGET", *(log.names.read for log in logs)), *renewals])
        for number, answer in enumerate(there):
            logs[number // 2].in_doubt |= answer == 0
        for log, reader in zip(logs, [] if isinstance(read, Exception) else read, strict=False):
            if log.read_elsewhere != (reader is not None) and self.generations:
                log.read_elsewhere = reader is not None
                count = (
                    self.generations.add_remote_reader if log.read_elsewhere else self.generations.remove_remote_reader
                )
                count(log.key)

    @property
    def _expiry(self) -> int:
        return self._retention + SPARE

    def _logs(self) -> Iterator[OwnLog]:
        yield from list(self._running.values())
        yield from [log for log, _ in self._ended.values()]

    def _in_doubt(self) -> list[OwnLog]:
        logs = self._logs() if self._any_in_doubt else self._running.values()
        doubtful = [log for log in logs if log.in_doubt]
        self._any_in_doubt = bool(doubtful)
        return doubtful

    def _note_ending(self, log: OwnLog) -> None:
        self._ending.append(log)
        self._any_ending.set()

    async def _cancel(self) -> None:
        (streams,) = await self._link.pipeline([("SMEMBERS", self._cancels)])
        if isinstance(streams, Exception) or not streams:
            return
        for log in self._logs():
            if log.names.stream.encode() in streams and self.generations:
                self.generations.cancel(log.key)
            if FORGET + log.names.stream.encode() in streams:
                self.forget(log)
        await self._link.pipeline([("SREM", self._cancels, *streams)])

    async def _write_all(self, logs: list[OwnLog]) -> None:
        logs = [log for log in logs if log.has_news and not log.in_doubt]
        for at in range(0, len(logs), BATCH):
            await self._write(logs[at : at + BATCH])

    async def _write(self, logs: list[OwnLog]) -> None:
        batches = [(log, log.last, log.ending, log.news(self._retention)) for log in logs]
        answers = iter(await self._link.pipeline([command for *_, commands in batches for command in commands]))
        for log, last, ending, commands in batches:
            results = [next(answers) for _ in commands]
            for (name, _, *arguments), answer in zip(commands, results, strict=True):
                if name != "XADD":
                    log.entries_stored -= name == "XDEL" and answer == 1
                    continue
                if answer is None or (isinstance(answer, ResponseError) and "equal or smaller" in str(answer)):
                    log.in_doubt = True
                    break
                if isinstance(answer, Exception):
                    _note(log.slot, answer)
                    break
                if arguments[1] == TERMINAL and ending:
                    self._show_end(log, ending)
                else:
                    log.stored = last
                    log.entries_stored += 1
                _note(log.slot, None)

    async def _compare(self, logs: list[OwnLog]) -> None:
        """Compare logs with their streams in Redis, and repair those."""
        commands: list[Command] = []
        for log in logs:
            stream = log.names.stream
            commands += ("GET", log.names.pointer), ("XREVRANGE", stream, "+", "-", "COUNT", 1), ("XLEN", stream)
        answers = await self._link.pipeline(commands)
        repairs: list[Command] = []
        lossy: set[Slot] = set()
        for number, log in enumerate(logs):
            pointer, entries, length = answers[3 * number : 3 * number + 3]
            if error := next((one for one in (pointer, entries, length) if isinstance(one, Exception)), None):
                _note(log.slot, error)
                continue
            entry, fields = entries[0] if entries else (b"", {})
            terminal = log.terminal or log.ending
            ended = fields.get(b"terminal")
            if ended and (terminal is None or ended != encode(terminal)):
                await self._refuse(log)
            elif self._is_whole(log, pointer, entry, length):
                log.in_doubt = False
                if ended and terminal and log.terminal is None:
                    self._show_end(log, terminal)
            else:
                if log.entries_stored:  # else Redis has lost nothing: the request was replaced
                    lossy.add(log.slot)
                repairs.append(self._repair(log, terminal, b"%b %d" % (entry, length)))
        if repairs:
            holds: list[Command] = [("SET", slot.keys[1], "", "PX", state_arguments()[2]) for slot in lossy]
            for answer in await self._link.pipeline([*holds, *repairs]):
                if isinstance(answer, Exception):
                    logger.warning("A log could not be written again: %s", describe(answer))

    def _is_whole(self, log: OwnLog, pointer: bytes | None, entry: bytes, length: int) -> bool:
        """Return whether Redis has all of a log up to its last entry there, and record which one that is."""
        if pointer != log.names.value and not (pointer and log.terminal):
            return False
        kind, _, number = entry.partition(b"-")
        stored = {b"0": 0, b"1": int(number or 0), b"2": log.last}.get(kind, -1)
        # After a loss of confirmed entries the stream is too short, even if its last entry is a newer one.
        expected = log.entries_stored + (stored > log.stored) + (kind == b"2")
        if (log.terminal and kind != b"2") or stored < log.stored or stored > log.last or length != expected:
            return False
        log.entries_stored = length - (kind == b"2")
        log.stored = stored
        return True

    def _repair(self, log: OwnLog, terminal: Terminal | None, state: bytes) -> Command:
        entries = log.entries(terminal)
        log.stored = log.last
        log.entries_stored = len(entries) // 3 - (terminal is not None)
        expiry = self._retention if terminal else self._expiry
        arguments = (log.names.value, expiry, encode(lost(log)), state, *entries)
        return evaluate(REPAIR, (log.names.pointer, log.names.stream), *arguments)

    async def _refuse(self, log: OwnLog) -> None:
        """End a log that another replica has ended, with the terminal frame from there."""
        if log.terminal is None:
            terminal = await self._end_of(log)
            if terminal is None:
                return
            self._running.pop(log.names.pointer, None)
            log.show_end(terminal)
            if self.generations:
                self.generations.cancel(log.key)
        self._ended.pop(log.names.pointer, None)
        log.in_doubt = False

    def _show_end(self, log: OwnLog, terminal: Terminal) -> None:
        log.stored = log.last
        self._running.pop(log.names.pointer, None)
        kept = min(KEPT, self._retention / 2000)
        self._ended[log.names.pointer] = (log, asyncio.get_running_loop().time() + kept)
        log.show_end(terminal)

    async def close(self) -> bool:
        """Write what is left; return whether everything is written."""
        await self.write()
        await self.undo()
        return not self._running


def _note(slot: Slot, error: Exception | None) -> None:
    """Record whether Redis accepts writes."""
    if error and slot.written:
        logger.warning("The shared log cannot be written: %s", describe(error))
    slot.written = error is None
