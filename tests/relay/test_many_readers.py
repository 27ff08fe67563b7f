"""Thousands of readers of one log, and thousands of logs: the work is linear in their number."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from relay.test_reader import Tap, content, done, log_of, texts, token
from stores.test_stores import A, B, named

from ws_chat.protocol.frames import Start
from ws_chat.relay.reader import Reader
from ws_chat.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

MANY = 1000


class Wake:
    """A reader's wake that counts how often it is compared or hashed."""

    operations = 0

    def __init__(self, log) -> None:
        self.log = log

    def __call__(self, *_: object) -> None:
        if self.log.terminal:
            self.log.unwatch(self)

    def __eq__(self, other: object) -> bool:
        Wake.operations += 1
        return self is other

    def __hash__(self) -> int:
        Wake.operations += 1
        return id(self)


def test_readers_that_leave_at_the_end_take_linear_work():
    log = log_of(1, ended=False)
    Wake.operations = 0
    for _ in range(MANY):
        log.watch(Wake(log))
    log.append([A])
    log.end(done(2))
    assert Wake.operations < 20 * MANY
    assert not log._watchers
    assert not log._wakes, "nothing is kept of those that have left"


def test_many_readers_get_all_of_it():
    log = log_of(1, ended=False)
    ended = []
    taps = [Tap() for _ in range(MANY)]
    for tap in taps:
        Reader(log, 0, tap, lambda: ended.append(None)).open()
    log.append([content("2 ")])
    log.end(done(2))
    for tap in taps:
        start, *tokens, terminal = tap.frames
        assert (start, texts(tokens), terminal) == (Start("r1", 0, "m"), "1 2 ", done(2))
    assert len(ended) == MANY


def test_readers_come_and_go_while_they_are_woken():
    log = log_of(0, ended=False)
    late = Tap()

    def come_and_go(last: int, _: object) -> None:
        if last == 1:
            first.close()
            Reader(log, 0, late, print).open()

    early = Tap()
    log.watch(come_and_go)
    first = Reader(log, 0, early, print)
    first.open()
    log.append([A])
    log.append([B])

    assert early.frames == [Start("r1", 0, "m")]
    assert late.frames == [Start("r1", 0, "m"), token(1, "a"), token(2, "b")], "each once"


class Visited(OrderedDict):
    """Counts how many entries are looked at."""

    visits = 0

    def items(self):
        for item in super().items():
            Visited.visits += 1
            yield item


async def test_a_look_for_old_logs_does_not_visit_all_of_them():
    store = MemoryStore()
    store._ended = Visited()
    for number in range(MANY):
        log = await store.create(named(f"r{number}"), Start(f"r{number}", 0, "m"), b"")
        log.end(done(0))
    store._remove_old()
    assert Visited.visits == 1
    await store.close()
