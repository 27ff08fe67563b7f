from __future__ import annotations

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed
from ws_chat.relay.generation import Generation

ERROR = ErrorInfo.of("upstream_timeout", "slow")


def new() -> Generation:
    return Generation("r1", "m", now=10.0)


def test_a_whole_answer():
    generation = new()
    generation.record_first_delta(10.25)
    generation.outcome.finish_reason = "stop"
    generation.outcome.usage = {"total_tokens": 1}
    generation.outcome.model = "m-1"

    assert generation.finish(1, 11.0) == Done(
        "r1", 2, "completed", "stop", "m-1", {"total_tokens": 1}, {"ttft_ms": 250.0, "total_ms": 1000.0}
    )


def test_an_answer_without_a_finish_reason_is_never_complete():
    generation = new()
    generation.record_first_delta(11.0)

    failed = generation.finish(1, 12.0)

    assert isinstance(failed, Failed)
    assert (failed.seq, failed.error.code) == (2, "upstream_incomplete")
    assert generation.total == 2.0


def test_a_cancelled_answer_keeps_its_count():
    assert new().cancel(0, 10.5) == Done("r1", 1, "cancelled", None, "m", None, {"ttft_ms": None, "total_ms": 500.0})


def test_a_failed_answer_keeps_its_count():
    generation = new()
    generation.record_first_delta(11.0)

    assert generation.fail(1, ERROR, 9.0) == Failed("r1", 2, ERROR)
