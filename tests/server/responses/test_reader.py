"""The reader of a response's events, without a socket: any pace of the sender, the same events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay.test_reader import Tap
from server.responses.test_events import ANSWERS, ECHO, ENDS, PIECES, START, done, failed, folded
from support.responses import check_error, check_joined, follow, text_of

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.errors import UNREACHABLE
from ws_chat.server.responses.reader import ResponseReader
from ws_chat.stores.memory import MemoryLog


def read(log: MemoryLog, tap: Tap, **options: Any) -> list[None]:
    """Open a reader; return a list that gets an entry at its end."""
    ends: list[None] = []
    ResponseReader(log, ECHO, tap, lambda: ends.append(None), **options).open()
    return ends


def written(tap: Tap) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event) for event in tap.frames]


@pytest.mark.parametrize("end", ["completed", "cut", "failed"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_reader_that_keeps_up_gets_each_event(name, end):
    log, tap = MemoryLog(START), Tap()
    ends = read(log, tap)
    for delta in ANSWERS[name]:
        log.append([encode_delta(delta)])
    assert not ends
    log.end(ENDS[end])

    assert ends == [None]
    assert written(tap) == [event for part in folded(ANSWERS[name], ENDS[end]) for event in part]


@pytest.mark.parametrize("field", ["content", "refusal", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("count", [1, 3])
def test_pieces_of_text_are_the_same_as_the_events_of_their_fields(field, count):
    """The event is cut together from the JSON of the deltas: also its fields have the same order."""
    log, tap = MemoryLog(START), Tap()
    read(log, tap)
    for text in ("a", 'b"', '","c":"', "ö🎈\\\n", "\u2028"):
        log.append([encode_delta({field: text})] * count)
        log.append([encode_delta({field: text, "other": 1})] * count)

    deltas = [event for event in tap.frames if b".delta" in event]
    assert len(deltas) == 10
    for cut, whole in zip(deltas[::2], deltas[1::2], strict=True):
        one, other = msgspec.json.decode(cut), msgspec.json.decode(whole)
        assert list(one) == list(other)
        assert one["sequence_number"] + count == other["sequence_number"]
        assert {**one, "sequence_number": 0} == {**other, "sequence_number": 0}


@settings(max_examples=60)
@given(
    st.lists(st.lists(PIECES, min_size=1, max_size=3), max_size=6),
    st.sampled_from(list(ENDS.values())),
    st.lists(st.integers(0, 4), min_size=8, max_size=8),
    st.integers(-1, 20),
)
def test_the_events_are_the_same_at_every_pace(reads, terminal, rooms, after):
    alone = [event for part in folded([delta for deltas in reads for delta in deltas], terminal) for event in part]
    log, tap = MemoryLog(START), Tap(rooms[0])
    ends = read(log, tap, after=after, last=b'"last"')
    for deltas, room in zip(reads, rooms[1:], strict=False):
        log.append([encode_delta(delta) for delta in deltas])
        tap.open(room)
    log.end(terminal)
    while not ends:
        tap.open(1)

    *came, last = written(tap)
    assert last == "last"
    check_joined(alone, came, after)
    assert ends == [None]


def test_a_replay_joins_pieces():
    log, tap = MemoryLog(START), Tap()
    log.append([encode_delta({"content": f"{number} "}) for number in range(2000)])
    log.end(done(2001))
    read(log, tap)

    assert text_of(follow(written(tap)).seen) == "".join(f"{number} " for number in range(2000))
    assert len(tap.frames) < 20


def test_the_events_of_the_end_wait_for_room_one_by_one():
    log, tap = MemoryLog(START), Tap()
    ends = read(log, tap)
    log.append([encode_delta({"content": "x" * 100_000})])
    tap.room = 0
    log.end(done(2))
    for count in range(1, 5):
        assert not ends
        tap.open(1)
        assert len(tap.frames) == 5 + count
    assert ends


def test_a_closed_reader_sends_nothing_more():
    log, tap = MemoryLog(START), Tap(1)
    ends: list[None] = []
    reader = ResponseReader(log, ECHO, tap, lambda: ends.append(None))
    reader.open()
    log.append([encode_delta({"content": "x"})])
    reader.close()
    tap.open(100)
    log.end(done(2))

    assert [event["type"] for event in written(tap)] == ["response.created"]
    assert not ends
    assert not log._watchers


def test_a_lane_is_in_every_event():
    log, tap = MemoryLog(START), Tap()
    read(log, tap, stream_id="A-z_0.9")
    for delta in ANSWERS["parallel calls"]:
        log.append([encode_delta(delta)])
    log.end(done(2))

    assert {event["stream_id"] for event in written(tap)} == {"A-z_0.9"}


def test_a_failure_before_the_first_delta_is_an_error_where_that_is_asked():
    log, tap, other = MemoryLog(START), Tap(), Tap()
    ends = [*read(log, tap, errors=True, stream_id="x"), *read(log, other)]
    log.end(failed("upstream_timeout"))

    *_, error = written(tap)
    check_error(error)
    assert (error["sequence_number"], error["status"], error["stream_id"]) == (2, 504, "x")
    assert written(other)[-1]["type"] == "response.failed"
    assert not ends


def test_a_log_that_cannot_be_read_on_is_no_end():
    log, tap = MemoryLog(START), Tap()
    ends = read(log, tap, last=b'"last"')
    log.append([encode_delta({"content": "a"})])
    log.interrupt(UNREACHABLE)

    *_, error = written(tap)
    check_error(error)
    assert (error["error"]["code"], "sequence_number" in error) == ("overloaded", False)
    assert ends


def test_a_reader_counts_deltas():
    log, tap = MemoryLog(START), Tap()
    reader = ResponseReader(log, ECHO, tap, lambda: None)
    reader.open()
    log.append([encode_delta({"content": "a"})])
    log.append([encode_delta({"content": text}) for text in "bc"])

    assert (reader.deltas, reader.frames) == (3, 2)
