from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.frames import Chat, decode
from ws_chat.relay.conversation import (
    Answer,
    conversation,
    echo_of,
    encode_request,
    is_same_request,
    join_lists,
    messages_of,
)
from ws_chat.stores.base import HEAD_LIMIT, rest_of

HI = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
PIECES = [
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
]


def assistant_message(deltas):
    answer = Answer()
    for delta in deltas:
        answer.add([encode_delta(delta)])
    return answer.message()


def chat(**request) -> Chat:
    frame = decode(json.dumps({"messages": [HI], "id": "r1", **request}))
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
        # Some servers send no ids, and all require them.
        (
            [{"tool_calls": [{"index": 3, "function": {"name": "g"}}, {"function": {"name": "h", "arguments": "{}"}}]}],
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_3", "function": {"name": "g", "arguments": ""}},
                    {"id": "call_1", "function": {"name": "h", "arguments": "{}"}},
                ],
            },
        ),
        ([{"tool_calls": "odd"}, {"content": 5}], None),
    ],
)
def test_the_deltas_of_an_answer_are_one_message(deltas, message):
    assert assistant_message(deltas) == message


def test_a_conversation_goes_on_from_what_was_asked_and_said():
    first = encode_request(chat(), b"")
    before = conversation(messages_of(first), assistant_message([{"content": "Hello"}]))
    second = encode_request(chat(messages=[{"role": "user", "content": "more"}], previous_id="r1"), before)

    assert json.loads(before) == [HI, {"role": "assistant", "content": "Hello"}]
    assert json.loads(messages_of(second)) == [*json.loads(before), {"role": "user", "content": "more"}]
    assert conversation(messages_of(second), None) == messages_of(second)


def test_the_same_request_is_known_again():
    fields = {"tools": [{"x": [1, {"y": None}]}], "previous_id": "r1", "model": "m"}
    kept = encode_request(chat(temperature=1, **fields), b"")

    assert is_same_request(kept, chat(**fields, temperature=1))
    assert is_same_request(kept, chat(**fields, temperature=1.0))
    assert is_same_request(kept, chat(type="chat", stream=True, **fields, temperature=1))


def test_a_stored_request_is_not_decoded():
    frame = chat()

    assert is_same_request(frame.digest + b"no JSON", frame)
    assert conversation(b"[no JSON]", {"role": "assistant", "content": "a"}).startswith(b"[no JSON,{")


SAME = [
    ("1", "1.0"),
    ("1", "1e0"),
    ("100", "1E2"),
    ("0", "-0.0"),
    ("0", "-0"),
    ("1e22", "10000000000000000000000"),
    ("18446744073709551616", "18446744073709551616.0"),
    ("0.1", "1e-1"),
    ("0.1", "0.1000000000000000055"),
    ('{"a":1,"b":2}', '{"b":2,"a":1}'),
    ('{"a":1}', '{"a":2,"a":1}'),
    ('"\\u00e9"', '"é"'),
]
OTHERS = [
    ("1", "true"),
    ("0", "false"),
    ("0", "null"),
    ("1", '"1"'),
    ("1.5", "1"),
    ("9007199254740993", "9007199254740992.0"),
    ("1e23", "100000000000000000000000"),
    ("[1,2]", "[2,1]"),
    ("[[],[]]", "[[[]]]"),
    ("{}", "[]"),
    ('{"a":null}', "{}"),
    ('"é"', '"e\\u0301"'),
]


@pytest.mark.parametrize(
    ("one", "other", "same"), [*((*pair, True) for pair in SAME), *((*pair, False) for pair in OTHERS)]
)
def test_numbers_and_keys_are_compared_as_values(one, other, same):
    kept, again = (decode(f'{{"id":"r1","messages":[{{"role":"user","x":{value}}}]}}') for value in (one, other))

    assert is_same_request(encode_request(kept, b""), again) is same
    assert same is (_equal(json.loads(one), json.loads(other)))


def _equal(one, other):
    """Compare two JSON values. (For Python's `==`, True is 1.)"""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


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
def test_another_request_is_distinguished(other):
    assert not is_same_request(encode_request(chat(temperature=1), b""), chat(**other))


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
def test_equal_as_json_means_equal_as_json(one, other):
    kept = encode_request(chat(metadata=one), b"")

    assert is_same_request(kept, chat(metadata=one))
    assert is_same_request(kept, chat(metadata=other)) is _equal(one, other)


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


@pytest.mark.parametrize("echo", [b"", b'{"user":"u"}'])
def test_what_is_stored_with_a_request(echo):
    stored = encode_request(Chat.of({"messages": [HI]}, id="r1", echo=echo), b"[1]")

    assert echo_of(stored) == echo
    assert json.loads(messages_of(stored)) == [1, HI]
    assert (echo_of(rest_of(stored)), messages_of(rest_of(stored))) == (echo, b"")


def test_little_is_kept_of_a_request_that_failed_early():
    stored = encode_request(Chat.of({"messages": [HI]}, id="r1", echo=b'{"user":"%b"}' % (b"u" * HEAD_LIMIT)), b"")

    assert echo_of(rest_of(stored)) == b"{}"


@pytest.mark.parametrize("one", [b"", b"[]", b"[1]", b"[1,2]"])
@pytest.mark.parametrize("other", [b"[]", b"[3]"])
def test_lists_are_joined(one, other):
    assert json.loads(join_lists(one, other)) == [*json.loads(one or b"[]"), *json.loads(other)]
