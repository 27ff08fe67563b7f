from __future__ import annotations

import itertools

import pytest

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed
from ws_chat.relay.generation import TRANSITIONS, Event, Generation, IllegalTransitionError, State

ENDED = {State.COMPLETED, State.CANCELLED, State.FAILED}
ERROR = ErrorInfo("upstream_timeout", "slow")


def new() -> Generation:
    return Generation("r1", "m", now=10.0)


def happen(generation: Generation, event: Event) -> None:
    match event:
        case Event.BEGIN:
            generation.begin(11.0)
        case Event.FINISH:
            generation.outcome.finish_reason = "stop"
            generation.finish(1, 12.0)
        case Event.CANCEL:
            generation.cancel(1, 12.0)
        case Event.FAIL:
            generation.fail(1, ERROR, 9.0)


def test_every_event_has_its_place_in_every_state_that_has_not_ended():
    assert set(TRANSITIONS) == {*itertools.product(set(State) - ENDED, Event)} - {(State.STREAMING, Event.BEGIN)}


@pytest.mark.parametrize("end", [Event.FINISH, Event.CANCEL, Event.FAIL])
@pytest.mark.parametrize("event", Event)
def test_nothing_happens_after_the_end(end, event):
    generation = new()
    happen(generation, end)
    state = generation.state

    with pytest.raises(IllegalTransitionError):
        happen(generation, event)
    assert generation.state is state


def test_a_whole_answer():
    generation = new()
    generation.begin(10.25)
    generation.outcome.finish_reason = "stop"
    generation.outcome.usage = {"total_tokens": 1}
    generation.outcome.model = "m-1"

    assert generation.finish(1, 11.0) == Done(
        "r1", 2, "completed", "stop", "m-1", {"total_tokens": 1}, {"ttft_ms": 250.0, "total_ms": 1000.0}
    )
    assert generation.state is State.COMPLETED


def test_an_answer_without_a_finish_reason_is_never_complete():
    generation = new()
    generation.begin(11.0)

    failed = generation.finish(1, 12.0)

    assert isinstance(failed, Failed)
    assert (failed.seq, failed.error.code) == (2, "upstream_incomplete")
    assert generation.state is State.FAILED


def test_a_cancelled_answer_keeps_its_count():
    assert new().cancel(0, 10.5) == Done("r1", 1, "cancelled", None, "m", None, {"ttft_ms": None, "total_ms": 500.0})


def test_a_failed_answer_keeps_its_count():
    generation = new()
    generation.begin(11.0)

    assert generation.fail(1, ERROR, 9.0) == Failed("r1", 2, ERROR)
