from __future__ import annotations

import itertools

import pytest

from ws_chat.deltas import Chunk
from ws_chat.errors import ErrorInfo
from ws_chat.frames import Done, Failed
from ws_chat.generation import TRANSITIONS, Event, Generation, IllegalTransitionError, State

ENDED = {State.COMPLETED, State.CANCELLED, State.FAILED}
ERROR = ErrorInfo("upstream_timeout", "slow")


def new() -> Generation:
    return Generation("r1", "m", now=10.0)


def happen(generation: Generation, event: Event) -> None:
    match event:
        case Event.DELTA:
            generation.accept([Chunk({"content": "a"}, "stop")], 11.0)
        case Event.FINISH:
            generation.finish(12.0)
        case Event.CANCEL:
            generation.cancel(12.0)
        case Event.FAIL:
            generation.fail(ERROR)


def test_every_event_has_its_place_in_every_state_that_has_not_ended():
    assert set(TRANSITIONS) == set(itertools.product(set(State) - ENDED, Event))


@pytest.mark.parametrize("end", [Event.CANCEL, Event.FAIL])
@pytest.mark.parametrize("event", Event)
def test_nothing_happens_after_the_end(end, event):
    generation = new()
    happen(generation, end)
    state, seq = generation.state, generation.seq
    generation._finish_reason = "stop"

    with pytest.raises(IllegalTransitionError):
        happen(generation, event)
    assert (generation.state, generation.seq) == (state, seq)


def test_deltas_are_counted_from_one_and_empty_ones_not_at_all():
    generation = new()

    assert generation.accept([Chunk({"role": "assistant", "content": ""}), Chunk()], 11.0) == []
    assert (generation.state, generation.seq) == (State.WAITING, 0)
    assert generation.accept([Chunk({"content": "a"}), Chunk({"content": None}), Chunk({"content": "b"})], 11.5) == [
        {"content": "a"},
        {"content": "b"},
    ]
    assert (generation.state, generation.seq) == (State.STREAMING, 2)


def test_a_whole_answer():
    generation = new()
    generation.accept([Chunk({"content": "a"}, model="m-1")], 10.25)
    generation.accept([Chunk({}, "stop"), Chunk(usage={"total_tokens": 1})], 10.5)

    assert generation.finish(11.0) == Done("r1", 2, "completed", "stop", "m-1", {"total_tokens": 1}, 250.0, 1000.0)
    assert generation.state is State.COMPLETED


def test_an_answer_without_a_finish_reason_is_never_complete():
    generation = new()
    generation.accept([Chunk({"content": "a"}, finish_reason="")], 11.0)

    failed = generation.finish(12.0)

    assert isinstance(failed, Failed)
    assert (failed.seq, failed.error.code) == (2, "upstream_incomplete")
    assert generation.state is State.FAILED


def test_a_cancelled_answer_keeps_its_count():
    generation = new()

    assert generation.cancel(10.5) == Done("r1", 1, "cancelled", None, "m", None, None, 500.0)


def test_a_failed_answer_keeps_its_count():
    generation = new()
    happen(generation, Event.DELTA)

    assert generation.fail(ERROR) == Failed("r1", 2, ERROR)
