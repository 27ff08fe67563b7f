"""Long work in slices: nobody waits for all of it."""

from __future__ import annotations

import asyncio

import pytest
from relay.test_reader import Tap, content, done, texts
from support.waiting import until

from ws_chat.protocol.frames import Start
from ws_chat.relay.reader import Reader
from ws_chat.stores import turns as turns_module
from ws_chat.stores.memory import MANY, MemoryLog
from ws_chat.stores.turns import Turns

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that goes on by `step` each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(turns_module, "time", clock)
    return clock


async def test_jobs_take_turns_and_each_waits_once(clock):
    turns = Turns()
    done = []

    def job(name):
        def work() -> None:
            done.append(name)
            if done.count(name) < 3 and turns.may_go_on(work):
                work()

        return work

    use_up(turns, clock)
    one, other = job("one"), job("other")
    one()
    other()
    assert turns.may_go_on(one) is False, "it waits already"
    assert done == ["one", "other"]
    await until(lambda: len(done) == 6, "all slices")
    assert done == ["one", "other"] * 3


async def test_one_that_is_alone_goes_on_while_there_is_time(clock):
    turns = Turns()
    assert turns.may_go_on(print)
    clock.now += turns_module.TURN_TIME / 2
    assert turns.may_go_on(print)
    clock.now += turns_module.TURN_TIME / 2
    waited = asyncio.Event()
    assert not turns.may_go_on(waited.set)
    await waited.wait()
    await asyncio.sleep(0)
    assert turns.may_go_on(print), "a turn with time of its own"


async def test_one_that_raises_costs_no_other_its_turn(clock):
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    turns = Turns()
    waited = asyncio.Event()
    use_up(turns, clock)
    turns.may_go_on(lambda: 1 / 0)
    turns.may_go_on(waited.set)
    await waited.wait()
    assert len(seen) == 1


def use_up(turns: Turns, clock: Clock) -> None:
    """Let the time of each turn be over after the first question, which is asked here for this one."""
    clock.step = turns_module.TURN_TIME
    assert turns.may_go_on(print)


def log_of(count: int, turns: Turns) -> MemoryLog:
    log = MemoryLog(Start("r1", 0, "m"), may_go_on=turns.may_go_on)
    if count:
        log.append([content(f"{number} ") for number in range(1, count + 1)])
    return log


async def test_replays_share_the_event_loop_and_a_live_reader_does_not_wait(clock):
    turns = Turns()
    log, live = log_of(20_000, turns), log_of(0, turns)
    log.end(done(20_000))
    use_up(turns, clock)
    taps = [Tap() for _ in range(3)]
    for tap in taps:
        Reader(log, 0, tap, print).open()
    assert [len(tap.frames) for tap in taps] == [2, 2, 2], "a start and one frame"

    tap = Tap()
    Reader(live, 0, tap, print).open()
    for number in range(5):
        live.append([content(f"{number}")])
        assert len(tap.frames) == number + 2, "at once"
        await asyncio.sleep(0)
    lengths = [len(tap.frames) for tap in taps]
    assert max(lengths) < 20
    assert max(lengths) - min(lengths) <= 1
    await until(lambda: all(tap.frames[-1] == log.terminal for tap in taps), "the replays to end")
    for tap in taps:
        assert texts(tap.frames) == "".join(f"{number} " for number in range(1, 20_001))


async def test_a_reader_that_waits_for_its_turn_is_not_pumped_by_writes(clock):
    turns = Turns()
    log = log_of(2000, turns)
    use_up(turns, clock)
    tap = Tap()
    Reader(log, 0, tap, print).open()
    for _ in range(10):
        log.append([content("x")])
    assert len(tap.frames) == 2
    await until(lambda: tap.frames[-1].seq == 2010, "the reader to come as far")
    log.end(done(2010))
    assert tap.frames[-1] == log.terminal


async def test_thousands_of_readers_are_woken_in_slices_and_get_all_of_it(clock):
    turns = Turns()
    log = log_of(0, turns)
    taps, ends = [Tap() for _ in range(5 * MANY)], []
    for tap in taps:
        Reader(log, 0, tap, lambda: ends.append(1)).open()
    leaving = Tap()
    left = Reader(log, 0, leaving, print)
    left.open()
    use_up(turns, clock)
    log.append([content("a")])
    assert sum(len(tap.frames) for tap in taps) == 5 * MANY + MANY, "the first slice at once"
    left.close()
    log.append([content("b")])
    log.append([content("c")])
    log.end(done(3))
    assert ends == []
    assert taps[0].frames[1:] != taps[-1].frames[1:]
    await until(lambda: len(ends) == len(taps), "all readers to end")
    for tap in taps:
        assert texts(tap.frames) == "abc"
        assert tap.frames[-1] == log.terminal
    assert len(leaving.frames) == 1
    assert (log._watchers, log.shared, log._round) == ({}, None, None)


async def test_readers_at_the_same_position_share_a_frame():
    log = log_of(3, Turns())
    taps = [Tap() for _ in range(3)]
    for tap in taps:
        Reader(log, 0, tap, print).open()
    log.append([content("4 ")])
    log.append([content("5 "), content("6 ")])
    late = Tap()
    Reader(log, 4, late, print).open()

    assert [len(tap.frames) for tap in taps] == [4, 4, 4]
    for frames in zip(*(tap.frames[1:] for tap in taps), strict=True):
        assert len(set(map(id, frames))) == 1
    assert late.frames[1] is taps[0].frames[3]
