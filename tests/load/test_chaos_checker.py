"""The checker of the chaos program, with made-up histories: it finds each kind of violation, and nothing that is excused."""

from __future__ import annotations

import pytest
from load.chaos.checker import check
from load.chaos.history import Event, Fault, History, Reader, Run, delta

SIZE = 5
"""Deltas of a run, one each second."""


class Story:
    """A history of one generation `g`, whose run 1 of replica r0 begins at 1 s and ends with its last delta."""

    def __init__(self) -> None:
        self.history = History(1, "none", retention=30, resume_window=15, end=100)
        self.run = self.add_run(1)

    def add_run(self, started: float, owner: str = "r0", use: int = 0) -> Run:
        number = len(self.history.runs) + 1
        run = Run(number, "g", use, owner, SIZE, started, SIZE, started + SIZE, completed=True)
        self.history.runs.append(run)
        return run

    def fault(self, kind, start: float, end: float | None = None, replica: str | None = None) -> None:
        self.history.faults.append(Fault(kind, start, start if end is None else end, replica))

    def reader(self, name: str = "reader", use: int = 0) -> Told:
        told = Told(name, use)
        self.history.readers.append(told.reader)
        return told

    def found(self) -> set[str]:
        return {violation.kind for violation in check(self.history)}


class Told:
    """A reader, and what it does and gets, at any replica but the owner unless it is named."""

    def __init__(self, name: str, use: int) -> None:
        self.reader = Reader(name, "g", use)

    def _note(self, time: float, kind, replica: str = "r1", /, **data) -> Told:
        self.reader.events.append(Event(time, kind, replica, data))
        return self

    def send(self, time: float, what: str = "chat", after: int = 0, epoch: str | None = None) -> Told:
        return self._note(time, "send", what=what, after=after, epoch=epoch)

    def start(self, time: float, seq: int = 0, epoch: str = "e1") -> Told:
        return self._note(time, "frame", type="start", seq=seq, epoch=epoch)

    def tokens(self, time: float, first: int = 1, last: int = SIZE, run: int = 1) -> Told:
        content = "".join(delta(run, seq) for seq in range(first, last + 1))
        return self._note(time, "frame", type="token", seq=last, content=content)

    def done(self, time: float, seq: int | None = SIZE + 1, status: str = "completed") -> Told:
        return self._note(time, "frame", type="done", seq=seq, status=status)

    def error(self, time: float, code: str, seq: int | None = None) -> Told:
        end = {} if seq is None else {"seq": seq}
        return self._note(time, "frame", type="error", error={"code": code}, **end)

    def status(self, time: float, status: int = 204) -> Told:
        return self._note(time, "frame", type="status", status=status)

    def closed(self, time: float) -> Told:
        return self._note(time, "closed")

    def over(self, time: float) -> Told:
        return self._note(time, "over")

    def whole(self, time: float = 0.9, epoch: str = "e1", run: int = 1) -> Told:
        """Read all of it."""
        return self.send(time).start(time, epoch=epoch).tokens(time + SIZE, run=run).done(time + SIZE + 0.1)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_reader_that_hops_and_one_that_comes_late_are_no_violation(story):
    hopping = story.reader("hopping").send(0.9).start(1).tokens(3, 1, 2).closed(3)
    hopping.send(3, "resume", 2, "e1").start(3, 2).tokens(6, 3, 5).done(6).closed(6)
    story.reader("late").send(20, "resume").start(20).tokens(20).done(20).send(21, "resume", 6, "e1").status(21)
    assert story.found() == set()


def mixed_text(story):
    story.add_run(40)
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(41, "resume", 2, "e1").start(41, 2, "e1").tokens(
        43, 3, 5, run=2
    )


def foreign_epoch(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(4, "resume", 2, "e1").start(4, 2, "e2")


def lost_delta(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).tokens(6, 4, 5)


def doubled_delta(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).tokens(6, 2, 5)


def broken_delta(story):
    story.reader().send(0.9).start(1)._note(2, "frame", type="token", seq=1, content="1.")


def wrong_position(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(3, "resume", 2, "e1").start(3, 1)


def another_generations_text(story):
    story.history.runs.append(Run(2, "other", 0, "r0", SIZE, 1))
    story.reader().send(0.9).start(1).tokens(3, run=2)


def text_of_another_use(story):
    story.add_run(40, use=1)
    story.reader(use=1).send(40).start(41).tokens(42, run=1)


def two_runs_in_an_epoch(story):
    story.add_run(40)
    story.reader("first").whole()
    story.reader("second").whole(40, run=2)


def two_epochs_of_a_run(story):
    story.reader("first").whole()
    story.reader("second").whole(epoch="e2")


def second_run(story):
    story.add_run(8)


def second_run_while_redis_alone_lost_its_data(story):
    story.fault("lost all", 7)
    story.add_run(8)


def two_ends(story):
    story.fault("killed", 5, replica="r0")
    story.reader("first").whole()
    story.reader("second").send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 4)


def two_ends_by_their_seq(story):
    story.fault("killed", 5, replica="r0")
    story.reader("first").send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 4)
    story.reader("second").send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 3)


def two_ends_while_redis_alone_lost_its_last_writes(story):
    story.fault("lost tail", 8)
    end_lost_with_its_owner(story)
    story.history.faults = story.history.faults[:1]


def truncated(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).done(6, 4)


def ends_beyond_what_was_delivered(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).done(6)


def frame_after_the_end(story):
    story.reader().whole().tokens(9, 1, 1)


def silent_end(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).closed(4).send(7, "resume", 3, "e1").status(7)


def lost_without_cause(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 4)


def lost_although_another_replica_died(story):
    story.fault("killed", 4, replica="r2")
    story.reader().send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 4)


def lost_after_a_short_stop(story):
    story.fault("stopped", 4, 4.5, replica="r0")
    story.reader().send(1).start(1).tokens(4, 1, 3).error(6, "generation_lost", 4)


def drained_without_a_drain(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).error(6, "draining", 4)


def cancelled_while_it_was_read(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).done(6, 4, "cancelled")


def overloaded_as_an_end(story):
    story.reader().send(1).start(1).tokens(4, 1, 3).error(6, "overloaded", 4)


def internal_error(story):
    story.reader().send(1).error(2, "internal_error")


def refused_although_nothing_is_wrong(story):
    story.fault("lost all", 50)
    story.reader().send(1).error(2, "overloaded").closed(2).send(3).start(3).tokens(6).done(6)


def unnamed_refused(story):
    story.reader().send(1, "unnamed chat").error(2, "overloaded").over(3)


def unexpected_conflict(story):
    story.reader().send(1).error(2, "id_conflict")


def not_found(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(4, "resume", 2, "e1").error(4, "not_found")


def not_found_while_its_owner_repairs(story):
    story.fault("lost all", 3.5)
    not_found(story)


def gone(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(4, "resume", 2, "e1").error(4, "generation_gone")


def position_refused(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(4, "resume", 2, "e1").error(4, "invalid_request")


def unanswered(story):
    story.reader().send(1).start(13).tokens(14).done(14)


def hangs(story):
    story.reader().send(0.9).start(1).tokens(3)


def hangs_although_redis_was_away(story):
    story.fault("away", 5, 18)
    story.reader().send(0.9).start(1).tokens(3)


def late(story):
    story.run.ended, story.run.completed = 4, False
    story.fault("killed", 4, replica="r0")
    story.reader().send(0.9).start(1).tokens(3, 1, 2).error(16, "generation_lost", 3)


def cancel_lost(story):
    story.run.ended = 60
    story.reader("cancel").send(10, "cancel").status(10.5)


def kept_for_ever(story):
    story.history.left["ws_chat:x"] = None


def kept_too_long(story):
    story.history.left["ws_chat:x"] = 600


def crash(story):
    story.history.crashes.append("r0: KeyError: 1")


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (mixed_text, "mixed text"),
        (foreign_epoch, "foreign epoch"),
        (lost_delta, "lost or doubled"),
        (doubled_delta, "lost or doubled"),
        (broken_delta, "lost or doubled"),
        (wrong_position, "position"),
        (another_generations_text, "foreign text"),
        (text_of_another_use, "foreign text"),
        (two_runs_in_an_epoch, "mixed epoch"),
        (two_epochs_of_a_run, "mixed epoch"),
        (second_run, "second run"),
        (second_run_while_redis_alone_lost_its_data, "second run"),
        (two_ends, "two ends"),
        (two_ends_by_their_seq, "two ends"),
        (two_ends_while_redis_alone_lost_its_last_writes, "two ends"),
        (truncated, "wrong end"),
        (ends_beyond_what_was_delivered, "wrong end"),
        (frame_after_the_end, "after the end"),
        (silent_end, "silent end"),
        (lost_without_cause, "lost without cause"),
        (lost_although_another_replica_died, "lost without cause"),
        (lost_after_a_short_stop, "lost without cause"),
        (drained_without_a_drain, "lost without cause"),
        (cancelled_while_it_was_read, "cancelled without cause"),
        (overloaded_as_an_end, "unexpected error"),
        (internal_error, "unexpected error"),
        (refused_although_nothing_is_wrong, "refused without cause"),
        (unnamed_refused, "unexpected error"),
        (unexpected_conflict, "unexpected error"),
        (not_found, "not_found"),
        (not_found_while_its_owner_repairs, "not_found"),
        (gone, "generation_gone"),
        (position_refused, "position refused"),
        (unanswered, "unanswered"),
        (hangs, "hangs"),
        (hangs_although_redis_was_away, "hangs"),
        (late, "late"),
        (cancel_lost, "cancel lost"),
        (kept_for_ever, "kept for ever"),
        (kept_too_long, "kept too long"),
        (crash, "crash"),
    ],
)
def test_a_violation_is_found(story, told, kind):
    told(story)
    assert kind in story.found()


def lost_with_its_owner(story):
    story.run.ended, story.run.completed = 4, False
    story.fault("killed", 4, replica="r0")
    story.reader("ahead").send(0.9).start(1).tokens(3.9, 1, 3).error(8, "generation_lost", 3)
    story.reader("elsewhere").send(0.9).start(1).tokens(3, 1, 2).error(9, "generation_lost", 3)
    story.reader("http").send(2, "resume").error(9, "generation_lost")


def gone_with_its_owner_and_redis(story):
    story.run.ended, story.run.completed = 4, False
    story.fault("killed", 4, replica="r0")
    story.fault("lost tail", 4)
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(4).send(8, "resume", 2, "e1").error(8, "not_found")
    story.add_run(9)
    story.reader("again").whole(9, "e2", 2)


def end_lost_with_its_owner(story):
    story.fault("killed", 8, replica="r0")
    story.fault("lost tail", 8)
    story.reader("before").whole()
    story.reader("after").send(15, "resume").start(15).tokens(15, 1, 3).error(15, "generation_lost", 4)


def gone_after_the_retention_time(story):
    story.reader().send(0.9).start(1).tokens(3, 1, 2).closed(3).send(50, "resume", 2, "e1").error(50, "generation_gone")
    story.add_run(40, use=1)


def lost_with_redis_long_after_its_end(story):
    story.history.retention = 300
    story.fault("lost all", 40)
    story.reader().send(41, "resume").error(41, "not_found")


def refused_for_a_while(story):
    story.fault("lost all", 1)
    story.reader().send(1).error(2, "overloaded").closed(2).send(3).start(3).tokens(6).done(6)


def cut_off_for_too_long(story):
    story.fault("cut off", 3, 8, "r0")
    story.reader().send(0.9).start(1).tokens(3, 1, 2).error(8, "generation_lost", 3)


def abandoned(story):
    story.run.ended = 40
    story.reader().send(0.9).start(1).tokens(3, 1, 2).over(3)
    story.reader("late").send(41, "resume").start(41).tokens(41, 1, 5).done(41, 6, "cancelled")


def cancelled(story):
    story.run.ended = 11
    story.reader("cancel").send(10, "cancel").status(10.5)
    story.reader().send(1).start(1).tokens(4, 1, 3).done(11, 4, "cancelled")


def too_slow_to_renew_a_lease(story):
    story.history.lags.append((5, 3.0))
    story.reader().send(1).start(1).tokens(4, 1, 3).error(9, "generation_lost", 4)


def slow_machine(story):
    story.history.lags.append((8, 4.0))
    story.reader().send(1).start(13).tokens(14).done(14)


def late_because_redis_was_away(story):
    story.fault("away", 5, 18)
    story.reader().send(0.9).start(1).tokens(3).done(20)


def on_a_stopped_replica(story):
    story.fault("stopped", 0.5, 20, "r1")
    story.reader().send(0.9).closed(15).send(21, "resume").start(21).tokens(21).done(21)


@pytest.mark.parametrize(
    "told",
    [
        lost_with_its_owner,
        gone_with_its_owner_and_redis,
        end_lost_with_its_owner,
        gone_after_the_retention_time,
        lost_with_redis_long_after_its_end,
        refused_for_a_while,
        cut_off_for_too_long,
        abandoned,
        cancelled,
        too_slow_to_renew_a_lease,
        slow_machine,
        late_because_redis_was_away,
        on_a_stopped_replica,
    ],
)
def test_what_the_contract_allows_is_no_violation(story, told):
    told(story)
    assert check(story.history) == []
