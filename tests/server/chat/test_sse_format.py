"""The text format over SSE, without a socket."""

from __future__ import annotations

import pytest
from support.service import events

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.frames import Done, Token
from ws_chat.server.chat.sse_format import TextFormat


def rendered(*frames) -> bytes:
    form = TextFormat()
    return b"".join(map(form.encode, frames))


def token(content) -> Token:
    return Token.of("r1", 1, encode_delta({"content": content, "x": 1}))


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a\r", "\nb"], "a\nb"),
        (["a\r", "\n", "b"], "a\nb"),
        (["a\r", "\r", "\nb"], "a\n\nb"),
        (["a\r\n", "\nb"], "a\n\nb"),
        (["a\r", "b\n"], "a\nb\n"),
        (["\r", "\n\n"], "\n\n"),
    ],
)
def test_a_line_break_cut_in_two_is_one_line_break(pieces, text):
    assert "".join(event["data"] for event in events(rendered(*map(token, pieces)))) == text


def test_a_cancelled_answer_says_so():
    cancelled = Done("r1", 2, "cancelled", None, "m", None, {"ttft_ms": None, "total_ms": 1.0})

    assert rendered(token("a"), cancelled) == b"data: a\n\nevent: done\ndata: [CANCELLED]\n\n"


def test_content_that_is_no_text_does_not_appear():
    assert rendered(token([{"type": "text"}]), token(None)) == b""
