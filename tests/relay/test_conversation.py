from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.frames import Chat, decode
from ws_chat.relay import conversation as conversation_module
from ws_chat.relay.conversation import conversation, encode_request, is_same_request

HI = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
PIECES = [
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
]


def assistant_message(deltas):
    return conversation_module.assistant_message(list(map(encode_delta, deltas)))


def chat(**request) -> Chat:
    frame = decode(json.dumps({"messages": [HI], **request}))
    assert isinstance(frame, Chat)
    return frame


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([], None),
        ([{"content": "a"}, {"content": "b"}], {"role": "assistant", "content": "ab"}),
        ([{"reasoning_content": "hm"}], None),
        ([{"reasoning_content": "hm"}, {"content": "a"}], {"role": "assistant", "content": "a"}),
        (PIECES, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
        ([{"content": "a"}, *PIECES], {"role": "assistant", "content": "a", "tool_calls": [CALL]}),
        # Two calls under one index, which only separate frames keep apart.
        (
            [*PIECES, {"tool_calls": [{"index": 0, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]}],
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [CALL, {"id": "c2", "function": {"name": "g", "arguments": "{}"}}],
            },
        ),
        ([{"tool_calls": "odd"}, {"content": 5}], None),
    ],
)
def test_what_was_said_is_one_message(deltas, message):
    assert assistant_message(deltas) == message


def test_a_conversation_goes_on_from_what_was_asked_and_said():
    first = encode_request(chat(), [])
    second_messages = [*conversation(first, [encode_delta({"content": "Hello"})])]
    second = encode_request(chat(messages=[{"role": "user", "content": "more"}], previous_id="r1"), second_messages)

    assert second_messages == [HI, {"role": "assistant", "content": "Hello"}]
    assert conversation(second, []) == [*second_messages, {"role": "user", "content": "more"}]


def test_the_same_request_is_known_again():
    kept = encode_request(chat(temperature=1, tools=[{"x": [1, {"y": None}]}], model="m", previous_id="r1"), [])

    assert is_same_request(kept, chat(tools=[{"x": [1, {"y": None}]}], previous_id="r1", model="m", temperature=1))
    assert is_same_request(kept, chat(tools=[{"x": [1, {"y": None}]}], previous_id="r1", model="m", temperature=1.0))
    assert is_same_request(kept, chat(type="chat", stream=True, **json.loads(kept)["request"]))


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 2},
        {"temperature": True},
        {"temperature": 1, "seed": None},
        {"temperature": 1, "model": "m"},
        {"temperature": 1, "previous_id": "r1"},
        {"temperature": 1, "messages": [HI, HI]},
        {"temperature": 1, "messages": [{**HI, "content": "Hi"}]},
        {},
    ],
)
def test_another_request_is_told_apart(other):
    assert not is_same_request(encode_request(chat(temperature=1), []), chat(**other))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab\u2028\u00e9"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3),
    max_leaves=10,
)


@given(JSON, JSON)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equal_as_json_means_equal_as_json(one, other):
    kept = encode_request(chat(metadata=one), [])

    assert is_same_request(kept, chat(metadata=one))
    if json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True):
        assert is_same_request(kept, chat(metadata=other))
    elif not _numbers(one) and not _numbers(other):
        assert not is_same_request(kept, chat(metadata=other))


def _numbers(value) -> bool:
    return any(isinstance(part, float) for part in _leaves(value))


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def test_a_call_in_thousands_of_pieces_is_one_call():
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"tool_calls": [{"index": 0, "function": {"arguments": f"{number:05} "}}]} for number in range(10_000)]
    (call,) = assistant_message([{"tool_calls": [head]}, *pieces])["tool_calls"]
    assert call == {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "".join(f"{number:05} " for number in range(10_000))},
    }


def test_what_else_a_delta_says_does_not_cut_a_call_in_two():
    deltas = [
        {"content": "a", "n": 1, "tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}}]},
        {"content": "b", "n": 2, "tool_calls": [{"index": 0, "id": "", "function": {"arguments": "}"}}]},
        {"tool_calls": [{"index": 0, "id": "c2", "function": {"name": "g", "arguments": "[]"}}]},
    ]
    assert assistant_message(deltas) == {
        "role": "assistant",
        "content": "ab",
        "tool_calls": [
            {"id": "c1", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "function": {"name": "g", "arguments": "[]"}},
        ],
    }
