"""Tool calls joined from their pieces: in a frame, and in a whole message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ws_chat.protocol import deltas as deltas_module
from ws_chat.protocol.deltas import ToolCalls

HEAD = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}


def merge(deltas: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    merged, count = deltas_module.merge([json.dumps(delta).encode() for delta in deltas])
    return json.loads(merged), count


def arguments(text: str, index: Any = 0, **head: Any) -> dict[str, Any]:
    return {"index": index, **head, "function": {"arguments": text}}


def joined(*pieces: Any) -> list[dict[str, Any]]:
    calls = ToolCalls()
    for piece in pieces:
        calls.add([piece])
    return calls.result()


def call(text: str, index: int | None = 0, **head: Any) -> dict[str, Any]:
    return {"index": index, "id": "c1", "type": "function", "function": {"name": "f", "arguments": text}, **head}


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([], []),
        ([HEAD], [call("")]),
        ([HEAD, arguments("{"), arguments("}")], [call("{}")]),
        # What is given once may be repeated, or sent empty; what comes later counts.
        ([HEAD, arguments("{}", id="c1", type="function")], [call("{}")]),
        ([HEAD, arguments("{}", id="", type=None)], [call("{}")]),
        ([arguments("{", id=None), {**HEAD, "function": {"name": "f", "arguments": "}"}}], [call("{}")]),
        ([HEAD, {"index": 0, "n": 1}, {"index": 0, "n": 2}], [{**call(""), "n": 2}]),
        # Another id under the same index is another call, and what follows belongs to it.
        (
            [HEAD, arguments("a"), {**HEAD, "id": "c2"}, arguments("b")],
            [call("a"), call("b", id="c2")],
        ),
        (
            [HEAD, {**HEAD, "index": 1, "id": "c2"}, arguments("a"), arguments("b", 1)],
            [call("a"), call("b", 1, id="c2")],
        ),
        # Without a number, a piece stands for itself.
        ([arguments("a", None), arguments("b", True)], [arguments("a", None), arguments("b", True)]),
        (["odd", None, {"index": 0}], [{"index": 0}]),
    ],
)
def test_pieces_of_whole_calls(pieces, calls):
    assert joined(*pieces) == calls


def test_a_frame_loses_nothing_that_a_whole_message_would_have():
    # The first piece belongs to a call that an earlier frame has started.
    deltas = [{"tool_calls": [arguments("a")]}, {"tool_calls": [arguments("b", id="c2")]}]
    assert merge(deltas) == (deltas[0], 1)


def test_a_long_call_is_put_together_once(monkeypatch):
    """Joining text piece by piece would take quadratic time."""
    texts = []

    class Text(deltas_module._Text):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            texts.append(self)

    monkeypatch.setattr(deltas_module, "_Text", Text)
    pieces = [{"tool_calls": [piece]} for piece in (HEAD, *(arguments(f"{number:05}") for number in range(500)))]
    merged, count = merge(pieces)
    assert count == 501
    assert len(merged["tool_calls"][0]["function"]["arguments"]) == 2500
    assert len(texts) == 1
    assert [len(part) for part in texts[0].parts] == [0] + [5] * 500


SCALARS = st.none() | st.booleans() | st.integers(0, 2) | st.text(max_size=2)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2)
PIECES = st.fixed_dictionaries(
    {"index": st.integers(0, 1) | st.sampled_from([None, True])},
    optional={
        "id": st.sampled_from(["x", "y", "", None]),
        "type": st.sampled_from(["function", "other", None]),
        "function": st.fixed_dictionaries(
            {}, optional={"name": st.sampled_from(["f", "g", ""]), "arguments": st.text(max_size=2), "more": VALUES}
        ),
        "extra": VALUES,
    },
)
DELTAS = st.lists(st.lists(PIECES, min_size=1, max_size=2), min_size=1, max_size=10)


@given(DELTAS, st.data())
def test_frames_of_any_pace_give_the_same_calls(deltas, data):
    whole, of_frames = ToolCalls(), ToolCalls()
    at = 0
    while at < len(deltas):
        lag = data.draw(st.integers(1, len(deltas) - at))
        frame, count = merge([{"tool_calls": pieces} for pieces in deltas[at : at + lag]])
        of_frames.add(frame["tool_calls"])
        at += count
    for pieces in deltas:
        whole.add(pieces)
    assert of_frames.result() == whole.result()
