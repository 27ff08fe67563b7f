"""One contract, every store."""

from __future__ import annotations

import pytest

from ws_chat.frames import Done, Start
from ws_chat.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DONE = Done("r1", 4, "completed", "stop", "m", None, None, 1.0)
A, B, C = ({"content": letter} for letter in "abc")


@pytest.fixture(params=[MemoryStore])
def store(request):
    return request.param()


async def test_a_log_is_read_after_any_seq(store):
    log = await store.create(Start("r1", 0, "m"))
    assert (log.start, log.last, log.terminal) == (Start("r1", 0, "m"), 0, None)
    assert list(log.after(0, 10)) == []

    log.append([A, B])
    log.append([C])
    log.end(DONE)

    assert [list(log.after(seq, 10)) for seq in range(5)] == [[A, B, C], [B, C], [C], [], []]
    assert list(log.after(0, 2)) == [A, B]
    assert (log.last, log.terminal) == (3, DONE)


async def test_every_write_wakes_every_reader_at_once(store):
    log = await store.create(Start("r1", 0, "m"))
    seen: list[tuple[str, int, list, bool]] = []

    def watch(name):
        def wake(last, deltas):
            assert last == log.last
            seen.append((name, last, list(deltas), log.terminal is not None))

        return wake

    first, second = watch("first"), watch("second")
    log.watch(first)
    log.watch(second)
    log.append([A])
    log.unwatch(first)
    log.unwatch(first)
    log.append([B, C])
    log.end(DONE)

    assert seen == [
        ("first", 1, [A], False),
        ("second", 1, [A], False),
        ("second", 3, [B, C], False),
        ("second", 3, [], True),
    ]


async def test_a_reader_may_leave_while_it_is_woken(store):
    log = await store.create(Start("r1", 0, "m"))
    woken = []

    def leave(*_):
        log.unwatch(leave)
        woken.append("leave")

    log.watch(leave)
    log.watch(lambda *_: woken.append("stay"))
    log.append([A])
    log.append([B])

    assert woken == ["leave", "stay", "stay"]


async def test_logs_are_found_by_id_until_removed(store):
    log = await store.create(Start("r1", 0, "m"))

    assert await store.get("r1") is log
    assert await store.get("r2") is None
    with pytest.raises(KeyError):
        await store.create(Start("r1", 0, "m"))
    store.remove("r1")
    store.remove("r1")
    assert await store.get("r1") is None
    await store.create(Start("r1", 0, "m"))
    await store.close()
