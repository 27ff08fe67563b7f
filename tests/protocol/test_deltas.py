from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ws_chat.protocol import deltas as deltas_module
from ws_chat.protocol.deltas import MERGE_LIMIT, decode_delta, encode_delta, merge


@pytest.mark.parametrize(
    ("delta", "left"),
    [
        ({"role": "assistant"}, {}),
        ({"role": "assistant", "content": ""}, {}),
        ({"content": None, "refusal": None, "tool_calls": [], "audio": {}}, {}),
        ({"role": "assistant", "content": "a"}, {"content": "a"}),
        ({"content": " ", "reasoning_content": "\n"}, {"content": " ", "reasoning_content": "\n"}),
        ({"type": "x", "id": "y", "seq": 4, "content": "a"}, {"content": "a"}),
        ({"count": 0, "flag": False}, {"count": 0, "flag": False}),
        ({"logprobs": -math.inf}, {"logprobs": None}),
    ],
)
def test_only_what_is_worth_a_frame_is_left(delta, left):
    encoded = encode_delta(delta)
    assert (json.loads(encoded) if encoded else {}) == left


def call(index: Any, arguments: str | None = None, **head: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **head, **({"function": {"arguments": arguments}} if arguments else {})}]}


MERGED = [
    ([{"content": "a"}], {"content": "a"}, 1),
    ([{"content": "a"}, {"content": "b"}, {"content": "c"}], {"content": "abc"}, 3),
    ([{"reasoning_content": "r"}, {"content": "a"}, {"content": "b"}], {"reasoning_content": "r", "content": "ab"}, 3),
    ([{"r": "x", "content": "a"}, {"content": "b"}, {"r": "y"}], {"r": "xy", "content": "ab"}, 3),
    ([{"x": [1]}, {"x": [2, 3]}], {"x": [1, 2, 3]}, 2),
    ([{"x": {"a": "1", "b": None}}, {"x": {"a": "2", "b": [1]}}], {"x": {"a": "12", "b": [1]}}, 2),
    ([{"x": {"a": "1"}}, {"x": {"a": None, "c": 4}}], {"x": {"a": "1", "c": 4}}, 2),
    ([{"x": 1, "content": "a"}, {"x": 1, "content": "b"}], {"x": 1, "content": "ab"}, 2),
    # What cannot be joined stays apart.
    ([{"x": 1, "content": "a"}, {"x": 2, "content": "b"}], {"x": 1, "content": "a"}, 1),
    ([{"x": True}, {"x": 1}], {"x": True}, 1),
    ([{"content": "a"}, {"content": ["b"]}], {"content": "a"}, 1),
    ([{"content": "a"}, {"content": "b"}, {"content": 7}, {"content": "c"}], {"content": "ab"}, 2),
    # Tool calls.
    ([call(0, "a"), call(0, "b")], call(0, "ab"), 2),
    (
        [call(0, "a", id="c0"), call(1, "x", id="c1"), call(0, "b")],
        {"tool_calls": [call(0, "ab", id="c0")["tool_calls"][0], call(1, "x", id="c1")["tool_calls"][0]]},
        3,
    ),
    (
        [call(0, "a", id="c0", type="function"), call(0, "b", id="c0", type="function")],
        call(0, "ab", id="c0", type="function"),
        2,
    ),
    ([call(0, "a", id="c0"), call(0, "b", id="c1")], call(0, "a", id="c0"), 1),
    ([call(0, "a", id="c0"), call(0, "b", id=None)], call(0, "ab", id="c0"), 2),
    ([{"tool_calls": [{"a": 1}]}, {"tool_calls": [{"b": 2}]}], {"tool_calls": [{"a": 1}, {"b": 2}]}, 2),
    ([{"tool_calls": "odd"}, {"tool_calls": [{}]}], {"tool_calls": "odd"}, 1),
    ([call(True, "a"), call(1, "b")], {"tool_calls": [*call(True, "a")["tool_calls"], *call(1, "b")["tool_calls"]]}, 2),
]


@pytest.mark.parametrize(("deltas", "joined", "count"), MERGED)
def test_neighbours_become_one(deltas, joined, count):
    merged, merged_count = merge(raw(deltas))
    assert (decode_delta(merged), merged_count) == (joined, count)


def raw(deltas: list[dict[str, Any]]) -> list[bytes]:
    """Return deltas as bytes, empty ones too."""
    return [json.dumps(delta, ensure_ascii=False, separators=(",", ":")).encode() for delta in deltas]


def test_a_joined_delta_does_not_grow_to_any_size():
    for delta in ({"content": "x" * 1000}, {"logprobs": {"content": [{"token": "x" * 1000}]}}):
        joined, count = merge(raw([delta] * 512))
        assert 250 <= count < 300
        assert 255 * 1000 <= len(joined) < 300 * 1024
    assert merge(raw([{"content": "x" * 300_000}] * 3))[1] == 1
    assert merge(raw([{"content": "x"}] * 600))[1] == MERGE_LIMIT


TRICKY = st.text(alphabet='a,":{}\\\n\u2028é😀', max_size=6)
TEXT_DELTAS = st.lists(
    st.one_of(
        TRICKY.map(lambda text: {"content": text}),
        st.dictionaries(
            st.sampled_from(["content", "r", 'q":"', "b\\"]), TRICKY | st.just([":", ","]), min_size=1, max_size=2
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(TEXT_DELTAS, st.booleans())
def test_texts_that_are_joined_as_bytes_are_joined_as_any_other(deltas, ascii_only):
    encoded = [json.dumps(delta, ensure_ascii=ascii_only, separators=(",", ":")).encode() for delta in deltas]
    joined, count = merge(encoded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas_module, "join_text", lambda _: None)
        expected, expected_count = merge(encoded)
    assert (decode_delta(joined), count) == (decode_delta(expected), expected_count)
    assert b"\n" not in joined
    if count == len(deltas) and all(
        delta.keys() == {"content"} and isinstance(delta["content"], str) for delta in deltas
    ):
        assert deltas_module.join_text(encoded) == joined, "without decoding"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"index": st.integers(0, 2), "function": st.fixed_dictionaries({"arguments": st.text(max_size=3)})},
        optional={"id": st.sampled_from(["x", "y"])},
    ),
    min_size=1,
    max_size=3,
)
DELTAS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"content": st.text(max_size=4), "refusal": st.text(max_size=2), "tool_calls": CALLS, "x": VALUES},
    ).filter(bool),
    min_size=1,
    max_size=8,
)


def whole(deltas: list[dict[str, Any]]) -> tuple[str, str, dict[Any, str], list[Any]]:
    """Join as a client does: text, and the arguments of each tool call by its index and the last id it was given."""
    calls: dict[Any, str] = {}
    ids: dict[int, Any] = {}
    for delta in deltas:
        for piece in delta.get("tool_calls", []):
            ids[piece["index"]] = piece.get("id", ids.get(piece["index"]))
            key = (piece["index"], ids[piece["index"]])
            calls[key] = calls.get(key, "") + piece["function"]["arguments"]
    lists = [entry for delta in deltas if isinstance(delta.get("x"), list) for entry in delta["x"]]
    return (
        "".join(delta.get("content", "") for delta in deltas),
        "".join(delta.get("refusal", "") for delta in deltas),
        {index: arguments for index, arguments in calls.items() if arguments},
        lists,
    )


@given(DELTAS, st.data())
def test_merging_changes_no_contents(deltas, data):
    frames = []
    at = 0
    while at < len(deltas):
        lag = data.draw(st.integers(1, len(deltas) - at))
        delta, count = merge(raw(deltas[at : at + lag]))
        assert 1 <= count <= lag
        frames.append(decode_delta(delta))
        at += count

    assert whole(frames) == whole(deltas)
