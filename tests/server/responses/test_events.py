"""The events of a response: a function of its log, the same at every pace."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.responses import Events, check_joined, follow

from ws_chat.protocol.errors import ErrorInfo
from ws_chat.protocol.frames import Done, Failed, Start
from ws_chat.server.responses.events import Fold, join
from ws_chat.server.responses.types import Echo

DIGITS = "6566c2b0" + "ab" * 16
ID = f"resp_{DIGITS}"
START = Start(ID, 0, "asked", "e")
TOOLS = [
    {"type": "function", "name": "f", "description": None, "parameters": {}, "strict": None},
    {"type": "custom", "name": "patch"},
]
ECHO = Echo(tools=TOOLS, metadata={"a": "b"}, instructions="Be brief.")
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def done(seq: int = 1, reason: str | None = "stop", status: Any = "completed", usage: Any = None) -> Done:
    return Done(ID, seq, status, reason, "answered", usage, {"ttft_ms": 1.0, "total_ms": 2500.0})


def failed(code: str = "upstream_unavailable") -> Failed:
    return Failed(ID, 1, ErrorInfo.of(code, "The upstream is away."))


def folded(deltas: list[dict[str, Any]], terminal: Any, echo: Echo = ECHO) -> list[list[dict[str, Any]]]:
    """Return the events of each delta, between those of the start and of the end."""
    fold = Fold(START, echo)
    parts = [fold.start(), *(fold.feed(delta) for delta in deltas), fold.end(terminal)]
    return [[msgspec.json.decode(msgspec.json.encode(event)) for event in part] for part in parts]


def events(deltas: list[dict[str, Any]], terminal: Any = None) -> Events:
    return follow(event for part in folded(deltas, terminal or done()) for event in part)


def call(index: int | None, arguments: str = "", **head: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": head.pop("name")} if "name" in head else {})}
    return {"tool_calls": [{**({} if index is None else {"index": index}), **head, "function": function}]}


LOGPROB = {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -1, "bytes": None}]}
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "text": [{"content": "Hel"}, {"content": "lo, wörld 🎈\n"}, {"content": '"'}],
    "reasoning, then text": [{"reasoning_content": "I "}, {"reasoning": "think"}, {"content": "a"}, {"content": "b"}],
    "reasoning and text in one delta": [{"content": "a", "reasoning_content": "r"}, {"content": "b"}],
    "refusal": [{"refusal": "I can"}, {"refusal": "not."}],
    "refusal amid text": [{"content": "a"}, {"refusal": "no"}, {"content": "b"}, {"content": "c", "refusal": "d"}],
    "logprobs": [
        {"content": "a", "logprobs": {"content": [LOGPROB]}},
        {"content": "b", "logprobs": {"content": [LOGPROB]}},
    ],
    "parallel calls": [
        {"content": "Let me see."},
        call(0, id="c0", type="function", name="f"),
        call(0, '{"a"'),
        call(1, id="c1", type="function", name="patch"),
        call(1, '{"inp'),
        call(0, ":1}"),
        call(1, 'ut":"*** Begin"}'),
    ],
    "text beside an open call": [call(0, "{", id="c", name="f"), {"content": "a"}, call(0, "}"), {"content": "b"}],
    "calls under one index": [call(0, "1", id="x", name="f"), call(0, "2", id="y", name="f"), call(0, "3")],
    "calls without ids": [call(0, "{}", name="f"), call(3, "{}", name="f"), call(None, "{}", name="f")],
    "pieces of odd types": [
        {"content": 5, "refusal": [], "reasoning": {}, "tool_calls": "x", "other": "y"},
        {"tool_calls": [None, {"index": "0", "id": 7, "function": "f"}, {"function": {"name": 1, "arguments": {}}}]},
        {"content": "a", "logprobs": {"content": "?"}},
    ],
}
ENDS = {
    "completed": done(reason="stop"),
    "tool calls": done(reason="tool_calls", usage=USAGE),
    "cut": done(reason="length"),
    "filtered": done(reason="content_filter"),
    "cancelled": done(reason=None, status="cancelled"),
    "failed": failed(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ANSWERS)
def test_every_event_is_what_the_sdk_expects(name, end):
    followed = events(ANSWERS[name], ENDS[end])

    assert [event["sequence_number"] for event in followed.seen] == list(range(len(followed.seen)))
    fold = Fold(START, ECHO)
    for delta in ANSWERS[name]:
        fold.feed(delta)
    whole = msgspec.to_builtins(fold.whole(ENDS[end]))
    assert followed.response == whole


def test_text():
    followed = events(ANSWERS["text"])

    assert followed.kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    (item,) = followed.output
    assert item["id"] == f"msg_{DIGITS}_0"
    assert item["content"][0]["text"] == 'Hello, wörld 🎈\n"'


def test_reasoning_is_an_item_before_the_message():
    reasoning, message = events(ANSWERS["reasoning, then text"]).response["output"]

    assert (reasoning["id"], reasoning["summary"]) == (f"rs_{DIGITS}_0", [])
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I think"}]
    assert message["content"][0]["text"] == "ab"


def test_one_delta_makes_its_events_in_order():
    followed = events([{"content": "c", "tool_calls": call(0, "{}", id="i", name="f")["tool_calls"], "reasoning": "r"}])

    assert [item["type"] for item in followed.output] == ["reasoning", "message", "function_call"]


def test_a_text_of_another_kind_is_another_part():
    (item,) = events(ANSWERS["refusal amid text"]).output

    assert [(part["type"], part.get("text", part.get("refusal"))) for part in item["content"]] == [
        ("output_text", "a"),
        ("refusal", "no"),
        ("output_text", "bc"),
        ("refusal", "d"),
    ]


def test_logprobs_have_lists_for_null():
    (item,) = events(ANSWERS["logprobs"]).output

    entry = {"token": "a", "logprob": -0.5, "bytes": [], "top_logprobs": [{"token": "b", "logprob": -1, "bytes": []}]}
    assert item["content"][0]["logprobs"] == [entry, entry]


def test_calls_stay_open_to_the_end_and_are_closed_in_order():
    followed = events(ANSWERS["parallel calls"], done(reason="tool_calls"))

    message, function, custom = followed.response["output"]
    assert message["status"] == "completed"
    assert (function["call_id"], function["name"], function["arguments"]) == ("c0", "f", '{"a":1}')
    assert function["id"] == f"fc_{DIGITS}_1"
    assert (custom["type"], custom["id"], custom["input"]) == ("custom_tool_call", f"ctc_{DIGITS}_2", "*** Begin")
    assert [event["type"].removeprefix("response.") for event in followed.seen[-6:]] == [
        "function_call_arguments.done",
        "output_item.done",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]


def test_a_piece_of_an_open_call_does_not_end_a_message():
    function, message = events(ANSWERS["text beside an open call"]).output

    assert function["arguments"] == "{}"
    assert message["content"][0]["text"] == "ab"


def test_a_new_id_under_an_index_is_a_new_call():
    output = events(ANSWERS["calls under one index"]).output

    assert [(item["call_id"], item["arguments"]) for item in output] == [("x", "1"), ("y", "23")]


def test_calls_without_ids_are_named_by_their_index():
    assert [item["call_id"] for item in events(ANSWERS["calls without ids"]).output] == ["call_0", "call_3", "call_2"]


@pytest.mark.parametrize("arguments", ["", "{", '{"input": 5}', '{"input": "a", "b": 1}', '"input"', "plain"])
def test_arguments_of_a_custom_tool_without_input_are_passed_on(arguments):
    (item,) = events([call(0, arguments, id="c", name="patch")]).output

    assert item["input"] == arguments


@pytest.mark.parametrize(
    ("end", "kind", "status", "reason", "item"),
    [
        ("completed", "completed", "completed", None, "completed"),
        ("cut", "incomplete", "incomplete", "max_output_tokens", "incomplete"),
        ("filtered", "incomplete", "incomplete", "content_filter", "incomplete"),
        ("cancelled", "incomplete", "cancelled", None, "incomplete"),
        ("failed", "failed", "failed", None, "incomplete"),
    ],
)
def test_the_end(end, kind, status, reason, item):
    followed = events(ANSWERS["text"], ENDS[end])

    assert followed.last["type"] == f"response.{kind}"
    response = followed.response
    assert (response["status"], response["output"][0]["status"]) == (status, item)
    assert response["incomplete_details"] == (reason and {"reason": reason})
    assert response["created_at"] == int(DIGITS[:8], 16)
    assert response["completed_at"] == (int(DIGITS[:8], 16) + 2 if kind == "completed" else None)
    assert response["model"] == ("asked" if end == "failed" else "answered")


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("upstream_rate_limited", "rate_limit_exceeded"),
        ("upstream_rejected", "invalid_prompt"),
        ("upstream_timeout", "server_error"),
        ("generation_lost", "server_error"),
        ("draining", "server_error"),
    ],
)
def test_the_codes_of_failures(code, named):
    response = events(ANSWERS["text"], failed(code)).response

    assert response["error"] == {"code": named, "message": "The upstream is away."}


def test_usage_in_the_names_of_the_protocol():
    assert events([], done(usage=USAGE)).response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 8,
    }
    assert events([], done()).response["usage"] is None
    odd = events([], done(usage={"prompt_tokens": 1, "completion_tokens": "x", "prompt_tokens_details": None}))
    assert odd.response["usage"]["total_tokens"] == 1


def test_the_response_has_its_requests_fields():
    response = events([]).response

    assert (response["tools"], response["metadata"], response["instructions"]) == (TOOLS, {"a": "b"}, "Be brief.")
    assert (response["temperature"], response["top_p"], response["truncation"]) == (1, 1, "disabled")


def test_a_running_response_has_no_output():
    fold = Fold(START, ECHO)
    for delta in ANSWERS["text"]:
        fold.feed(delta)
    response = fold.response

    assert (response.status, response.output, response.usage) == ("in_progress", [], None)


TEXTS = st.text(min_size=1, max_size=3)
PIECES = st.one_of(
    st.fixed_dictionaries({"content": TEXTS}),
    st.fixed_dictionaries({"content": TEXTS, "logprobs": st.just({"content": [LOGPROB]})}),
    st.fixed_dictionaries({"refusal": TEXTS}),
    st.fixed_dictionaries({"reasoning_content": TEXTS}),
    st.builds(call, st.integers(0, 2), TEXTS, id=st.sampled_from(["x", "y", ""]), name=st.sampled_from(["f", "patch"])),
    st.builds(call, st.integers(0, 2), TEXTS),
)


@settings(max_examples=60)
@given(
    st.lists(PIECES, max_size=12),
    st.sampled_from(list(ENDS.values())),
    st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_numbers_and_text_are_the_same_at_every_pace_and_after_every_event(deltas, terminal, cuts):
    parts = folded(deltas, terminal)
    alone = [event for part in parts for event in part]
    follow(alone)

    for after in range(-1, len(alone)):
        fold = Fold(START, ECHO)
        batches: list[list[Any]] = [[]]
        steps = [fold.start(), *(fold.feed(delta) for delta in deltas), fold.end(terminal)]
        for cut, step in zip([*cuts, *cuts], steps, strict=False):
            batches[-1] += [event for event in step if event.sequence_number > after]
            if cut:
                batches.append([])
        came = [json.loads(msgspec.json.encode(event)) for batch in batches for event in join(batch)]

        check_joined(alone, came, after)


def test_joining_stops_at_large_pieces():
    fold = Fold(START, ECHO)
    fold.start()
    pieces = [event for _ in range(4) for event in fold.feed({"content": "x" * 200_000})]

    sizes = [len(event.delta) for event in join(pieces) if hasattr(event, "delta")]

    assert sizes == [400_000, 400_000]
