"""Checks a history against the contract (docs/protocol.md): history in, violations out. Pure.

Only this module decides what a fault excuses: see `_Checker.lost`, `_calm` and `_dead`. A slow machine excuses as much
delay as the history has measured.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from load.chaos.history import Event, Fault, History, Reader, Run

ANSWERED_WITHIN = 10.0
"""Seconds in which every request is answered, a lost owner is reported, and a cancel ends its generation."""
RESENT_WITHIN = 30.0
"""Seconds after its end in which an answer survives a Redis that loses its data."""
SETTLING = 10.0
"""Seconds after a loss of data in which the replicas may refuse, until every owner has had its time to repair it."""
ABSENT_AFTER = 2.0
"""Seconds without Redis, or suspended, after which a replica may count as dead."""
LEFT_WITHIN = 60.0
"""Seconds that keys may stay beyond the retention time, once every replica has ended."""
ABSENCE = 3.0
"""Seconds between two connections after which a reader was absent, by its own choice."""
SLOW = 0.5
"""Seconds of lag above which a machine is slow."""
GRACE = 1.0
"""Seconds of tolerance of every deadline."""

CLIENT = "client"
"""Recorded as the replica of the Python client, which chooses one by itself."""
UNNAMED = "unnamed chat"
"""A chat without an id, which needs no Redis."""
RETRYABLE = {"overloaded", "draining", "rate_limited", "too_many_generations"}
_DELTA = re.compile(r"(\d+)\.(\d+)\n")

Signature = tuple[str, str, int | None]
"""A terminal frame: its type, its status or code, its seq (None where HTTP answers without one)."""


class Violation(NamedTuple):
    """A violation of the contract. `who` names the generation or the reader."""

    kind: str
    who: str
    what: str


def _reading_since(reader: Reader) -> float:
    """Return the time since which a reader has read, or tried to, without an absence."""
    since = 0.0
    closed: float | None = float("-inf")
    for event in reader.events:
        if event.kind == "send" and closed is not None and event.time - closed >= ABSENCE:
            since = event.time
        closed = event.time if event.kind == "closed" else None
    return since


def check(history: History, patience: float = 1.0) -> list[Violation]:
    """Return all violations of the contract. `patience` multiplies its deadlines, for a machine that is slow."""
    return _Checker(history, ANSWERED_WITHIN * patience).check()


class _View:
    """The state of a reader at one moment."""

    def __init__(self) -> None:
        self.seq = 0
        self.epoch: str | None = None
        self.run: int | None = None
        self.terminal: Signature | None = None
        self.ended: float | None = None
        """When it got the terminal frame, or a refusal after which it did not try again."""


class _Checker:
    def __init__(self, history: History, within: float) -> None:
        self._history = history
        self._within = within
        self._violations: list[Violation] = []
        self._runs = {run.number: run for run in history.runs}
        self._uses: dict[tuple[str, int], list[Run]] = defaultdict(list)
        for run in sorted(history.runs, key=lambda run: run.started):
            self._uses[run.id, run.use].append(run)
        self._runs_of_epoch: dict[str, set[int]] = defaultdict(set)
        self._terminals: dict[tuple[str, bool], dict[Signature, str]] = defaultdict(dict)
        self._accepted: dict[tuple[str, int], float] = {}
        self._cancels: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._acknowledged: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._present: dict[tuple[str, int], list[tuple[float, float, str]]] = defaultdict(list)
        for reader in history.readers:
            self._index(reader)

    def check(self) -> list[Violation]:
        for reader in self._history.readers:
            self._answers(reader)
            self._check_reader(reader)
        self._second_runs()
        self._epochs()
        self._one_end()
        self._ends_of_cancelled()
        self._left()
        self._violations += [Violation("crash", "replica", crash) for crash in self._history.crashes]
        return self._violations

    def _add(self, kind: str, who: str, what: str) -> None:
        self._violations.append(Violation(kind, who, what))

    def _index(self, reader: Reader) -> None:
        """Record when the generation was accepted, cancelled and read."""
        key = (reader.id, reader.use)
        since: float | None = None
        cancelling = False
        for event in reader.events:
            kind = event.data.get("type")
            if event.kind == "send":
                cancelling = event.data["what"] == "cancel"
                if cancelling:
                    self._cancels[key].append(event.time)
            elif event.kind == "frame" and kind == "start":
                since = event.time
                self._accepted[key] = min(event.time, self._accepted.get(key, event.time))
            elif event.kind == "frame" and kind == "status" and cancelling:
                self._acknowledged[key].append(event.time)
            elif event.kind in ("closed", "over") and since is not None:
                self._present[key].append((since, event.time, event.replica))
                since = None
        if since is not None:
            self._present[key].append((since, self._history.end, reader.events[-1].replica))

    # The excuses.

    def _slack(self, start: float, end: float) -> float:
        lags = [lag for time, lag in self._history.lags if start - 2 <= time <= end + 2]
        return GRACE + 2 * max(lags, default=0.0) + sum(lag for lag in lags if lag > SLOW) / 4

    def _end(self, fault: Fault) -> float:
        return self._history.end if fault.end is None else fault.end

    def _faults(self, *kinds: str, start: float, end: float, replica: str | None = None) -> Iterator[Fault]:
        """Yield the faults of these kinds between two times, of one replica if it is named."""
        for fault in self._history.faults:
            concerned = fault.kind in kinds and (replica is None or fault.replica in (None, replica))
            if concerned and fault.start <= end and self._end(fault) >= start:
                yield fault

    def _dead(self, replica: str, start: float, end: float) -> bool:
        """Return whether a replica had ended, or may have counted as dead, at some time."""
        if any(self._faults("killed", "drained", start=start, end=end, replica=replica)):
            return True
        if any(lag >= ABSENT_AFTER for time, lag in self._history.lags if end - 10 <= time <= end):
            return True  # the machine was too slow to renew a lease
        absent = self._faults("stopped", "cut off", start=start, end=end, replica=replica)
        return any(min(end, self._end(fault)) - fault.start >= ABSENT_AFTER for fault in absent)

    def lost(self, run: Run, time: float) -> bool:
        """Return whether the log of a run cannot come back at this time."""
        if run.ended is not None and time >= run.ended + self._history.retention - GRACE:
            return True
        for loss in self._faults("lost all", "lost tail", start=run.started, end=time):
            ended_long_ago = run.ended is not None and run.ended < loss.start - RESENT_WITHIN
            if ended_long_ago or self._dead(run.owner, run.started, time):
                return True
        return False

    def _calm(self, time: float, replicas: Collection[str]) -> float:
        """Return the first time from which no fault concerns one of these replicas, and Redis has settled."""
        for fault in sorted(self._history.faults, key=lambda fault: fault.start):
            if not (fault.replica is None or fault.replica in replicas or CLIENT in replicas):
                continue
            end = self._end(fault) + (SETTLING if fault.kind.startswith("lost") else 0.0)
            if fault.start <= time + self._within and end > time:
                time = end
        return time

    def _undisturbed(self, time: float) -> bool:
        """Return whether there has been no fault for long, and the machine is fast enough."""
        slow = any(lag > SLOW for at, lag in self._history.lags if time - ANSWERED_WITHIN <= at <= time)
        return not slow and not any(
            fault.start <= time and self._end(fault) >= time - 2 * SETTLING for fault in self._history.faults
        )

    # One reader.

    def _answers(self, reader: Reader) -> None:
        """Check that each request was answered in time."""
        asked: Event | None = None
        for event in reader.events:
            if event.kind == "send":
                asked = asked or event
            elif asked:
                self._answered(reader, asked, event.time)
                asked = None
        if asked:
            self._answered(reader, asked, self._history.end)

    def _answered(self, reader: Reader, asked: Event, time: float) -> None:
        if asked.replica == CLIENT:
            return  # it retries refused requests without an event
        took = time - asked.time
        stopped = self._faults("stopped", "killed", start=asked.time - 1, end=time, replica=asked.replica)
        if took > self._within + self._slack(asked.time, time) and not any(stopped):
            what = f"{asked.data['what']} at {asked.replica} not answered within {took:.1f} s"
            self._add("unanswered", reader.name, what)

    def _check_reader(self, reader: Reader) -> None:
        view = _View()
        asked: dict[str, Any] = {}
        for event in reader.events:
            if event.kind == "send" and event.data["what"] != "ping":
                asked = event.data
                if asked["what"] != "cancel" and not asked.get("after", 0):
                    view.seq, view.run, view.epoch = 0, None, asked.get("epoch")
            elif event.kind == "over":
                return  # it left by its own choice
            elif event.kind == "frame" and not self._frame(reader, view, asked, event):
                return  # later frames would only repeat the violation
        self._check_end(reader, view)

    def _frame(self, reader: Reader, view: _View, asked: dict[str, Any], event: Event) -> bool:
        """Check one frame. Return whether the reader's later frames can be checked."""
        frame = event.data
        kind = frame["type"]
        if kind == "start":
            if frame["seq"] != asked.get("after", 0):
                self._add("position", reader.name, f"asked for {asked}, got {frame}")
            if view.epoch is not None and frame["epoch"] != view.epoch:
                self._add("foreign epoch", reader.name, f"held {view.seq} of {view.epoch}, was resumed in {frame}")
            view.epoch = frame.get("epoch")
        elif kind == "token":
            if view.terminal:
                self._add("after the end", reader.name, f"{frame} after {view.terminal}")
            return self._token(reader, view, asked, frame)
        elif kind == "status":
            if frame["status"] == 204 and asked["what"] != "cancel" and view.terminal is None:
                self._add("silent end", reader.name, f"204 for {asked}, without any terminal frame")
            view.ended = event.time
        elif kind == "done" or (kind == "error" and "seq" in frame):
            self._terminal(reader, view, event)
        elif kind == "error":
            self._refusal(reader, view, asked, event)
        return True

    def _token(self, reader: Reader, view: _View, asked: dict[str, Any], frame: dict[str, Any]) -> bool:
        deltas = [(int(run), int(seq)) for run, seq in _DELTA.findall(frame["content"])]
        runs = {run for run, _ in deltas}
        if "".join(f"{run}.{seq}\n" for run, seq in deltas) != frame["content"]:
            self._add("lost or doubled", reader.name, f"after seq {view.seq}: {frame}")
            return False
        if view.run is not None:
            runs.add(view.run)
        if len(runs) > 1:
            self._add("mixed text", reader.name, f"{view.seq} deltas of run {view.run}, and then {frame}")
            return False
        if [seq for _, seq in deltas] != list(range(view.seq + 1, frame["seq"] + 1)):
            self._add("lost or doubled", reader.name, f"after seq {view.seq}: {frame}")
            return False
        view.run, view.seq = runs.pop(), frame["seq"]
        run = self._runs.get(view.run)
        if run is None or run.id != reader.id or (run.use != reader.use and asked["what"] in ("chat", UNNAMED)):
            self._add("foreign text", reader.name, f"{frame} is not of {reader.id}, use {reader.use}")
            return False
        if view.epoch is not None:
            self._runs_of_epoch[view.epoch].add(view.run)
        return True

    def _terminal(self, reader: Reader, view: _View, event: Event) -> None:
        frame = event.data
        state = frame["status"] if frame["type"] == "done" else frame["error"]["code"]
        view.terminal = (frame["type"], state, frame.get("seq"))
        view.ended = event.time
        run = self._run_of(reader, view)
        self._note_end(reader, view, run)
        if frame.get("seq") is not None:
            missing = frame["seq"] - 1 - view.seq
            # The readers of a replica that died may have seen more than it had logged.
            if missing > 0 or (missing < 0 and state != "generation_lost"):
                self._add("wrong end", reader.name, f"{view.seq} deltas of run {view.run}, and then {frame}")
            if state == "completed" and run and frame["seq"] != run.size + 1:
                self._add("wrong end", reader.name, f"run {run.number} has {run.size} deltas, its end is {frame}")
        self._cause(reader, run, state, event)

    def _run_of(self, reader: Reader, view: _View) -> Run | None:
        runs = self._uses.get((reader.id, reader.use), [])
        return self._runs.get(view.run or 0) or (runs[-1] if runs else None)

    def _note_end(self, reader: Reader, view: _View, run: Run | None) -> None:
        if view.epoch is not None and view.terminal is not None and view.ended is not None:
            # If Redis loses the end of an answer whose owner is dead, later readers get `generation_lost`.
            lost = run is not None and self.lost(run, view.ended)
            self._terminals[view.epoch, lost].setdefault(view.terminal, reader.name)

    def _cause(self, reader: Reader, run: Run | None, state: str, event: Event) -> None:
        """Check that there is a reason for an end that is not the upstream's own."""
        if state == "completed":
            return
        if state == "cancelled":
            key = (reader.id, reader.use)
            if not any(time <= event.time for time in self._cancels[key]) and run and self._was_read(run):
                self._add("cancelled without cause", reader.name, f"run {run.number}: {event.data}")
        elif state == "generation_lost":
            start, owner = (run.started, run.owner) if run else (self._history.start, None)
            died = self._dead(owner, start - 1, event.time) if owner else bool(self._history.faults)
            if not died:
                self._add("lost without cause", reader.name, f"its owner {owner} lives: {event.data}")
        elif state == "draining":
            drained = self._faults("drained", start=self._history.start, end=event.time)
            if not any(run is None or fault.replica == run.owner for fault in drained):
                self._add("lost without cause", reader.name, f"nothing drains: {event.data}")
        else:
            self._add("unexpected error", reader.name, f"{event.data}")

    def _was_read(self, run: Run) -> bool:
        """Return whether a run had a reader in the resume window before its end."""
        end = (run.ended or self._history.end) - GRACE
        start = end - self._history.resume_window + 2 * GRACE
        for since, until, replica in self._present[run.id, run.use]:
            if since < end and until > start:
                absent = ("stopped", "killed", "cut off", "drained")
                if not any(any(self._faults(*absent, start=start, end=end, replica=r)) for r in (replica, run.owner)):
                    return True
        return False

    def _refusal(self, reader: Reader, view: _View, asked: dict[str, Any], event: Event) -> None:
        code = event.data["error"]["code"]
        if code in RETRYABLE:
            if asked["what"] == UNNAMED and not any(self._faults("drained", start=event.time - 5, end=event.time)):
                self._add("unexpected error", reader.name, f"unnamed, at {event.replica}: {event.data}")
            elif code == "overloaded" and self._undisturbed(event.time):
                self._add("refused without cause", reader.name, f"{asked} at {event.replica}: {event.data}")
            return
        view.ended = event.time
        if code in ("not_found", "generation_gone"):
            key = (asked["previous"], 0) if asked.get("previous") else (reader.id, reader.use)
            run = self._runs.get(view.run or 0) or self._last_run(key, event.time)
            accepted = self._accepted.get(key, self._history.end)
            if run is None:
                died = any(self._faults("killed", "drained", start=self._history.start, end=event.time))
                kept = accepted < event.time and not died
            else:
                kept = not self.lost(run, event.time)
            if kept:
                number = f"run {run.number} of {run.owner}" if run else "it"
                self._add(code, reader.name, f"for {asked} at {event.replica}, while {number} is kept")
        elif code == "id_conflict":
            uses = {run.use for run in self._history.runs if run.id == reader.id and run.started < event.time}
            others = [run for use in uses - {reader.use} for run in self._uses[reader.id, use]]
            if all(self.lost(run, event.time - ABSENCE) for run in others):
                self._add("unexpected error", reader.name, f"{asked} at {event.replica}: {event.data}")
        elif code == "invalid_request":
            self._add("position refused", reader.name, f"{asked} at {event.replica}: {event.data}")
        else:  # an end, which HTTP gives as an error without a stream when there was no delta
            view.terminal = ("error", code, None)
            run = self._run_of(reader, view)
            self._note_end(reader, view, run)
            self._cause(reader, run, code, event)

    def _last_run(self, key: tuple[str, int], time: float) -> Run | None:
        runs = [run for run in self._uses.get(key, []) if run.started < time]
        return runs[-1] if runs else None

    def _check_end(self, reader: Reader, view: _View) -> None:
        """Check that a reader got the end in time."""
        sends = [event for event in reader.events if event.kind == "send" and event.data["what"] != "ping"]
        if not sends:
            return
        run = self._run_of(reader, view)
        if run is None or run.ended is None:
            accepted = self._accepted.get((reader.id, reader.use))
            if run is not None or accepted is None:
                return
            over = accepted
        else:
            over = run.ended
        replicas = {event.replica for event in reader.events} | ({run.owner} if run else set())
        since = self._calm(max(over, _reading_since(reader)), replicas)
        seen = view.ended or self._history.end
        late = seen - since - self._within - self._slack(since, seen)
        if late > 0:
            of = f"run {run.number} of {run.owner}" if run else "its generation"
            if view.ended is None:
                self._add("hangs", reader.name, f"got no end for {seen - since:.1f} s after the end of {of}")
            else:
                self._add("late", reader.name, f"got the end {seen - since:.1f} s after the end of {of}")

    # All readers of a generation.

    def _second_runs(self) -> None:
        for runs in self._uses.values():
            for before, run in itertools.pairwise(runs):
                if not self.lost(before, run.started):
                    what = f"run {run.number} of {run.owner}, while run {before.number} of {before.owner} is kept"
                    self._add("second run", run.id, what)

    def _epochs(self) -> None:
        of_run: dict[int, set[str]] = defaultdict(set)
        for epoch, numbers in self._runs_of_epoch.items():
            if len(numbers) > 1:
                self._add("mixed epoch", epoch, f"texts of the runs {sorted(numbers)}")
            for number in numbers:
                of_run[number].add(epoch)
        for number, epochs in of_run.items():
            if len(epochs) > 1:
                self._add("mixed epoch", self._runs[number].id, f"run {number} in the epochs {sorted(epochs)}")

    def _one_end(self) -> None:
        for (epoch, _), terminals in self._terminals.items():
            exact = {(kind, state) for kind, state, seq in terminals if seq is not None}
            found = {one: who for one, who in terminals.items() if one[2] is not None or one[:2] not in exact}
            if len(found) > 1:
                what = ", ".join(f"{' '.join(map(str, one))} for {who}" for one, who in found.items())
                self._add("two ends", epoch, what)

    def _ends_of_cancelled(self) -> None:
        for key, times in self._acknowledged.items():
            for run in self._uses[key]:
                acknowledged = [time for time in times if time > run.started]
                if not acknowledged:
                    continue
                since = self._calm(acknowledged[0], {run.owner})
                ended = run.ended or self._history.end
                if ended > since + self._within + self._slack(since, ended):
                    what = f"run {run.number} of {run.owner} went on for {ended - acknowledged[0]:.1f} s"
                    self._add("cancel lost", run.id, what)

    def _left(self) -> None:
        stepped = any(fault.kind == "clock" for fault in self._history.faults)  # also what keys have left to live
        for key, seconds in self._history.left.items():
            if seconds is None:
                self._add("kept for ever", key, "without a time to live")
            elif seconds > self._history.retention + LEFT_WITHIN and not stepped:
                self._add("kept too long", key, f"{seconds:.0f} s")
