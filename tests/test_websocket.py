from __future__ import annotations

import pytest
from conftest import HELLO, joined

pytestmark = pytest.mark.anyio


async def test_relays_an_answer_frame_by_frame(service, fake):
    async with service.socket() as socket:
        start, *tokens, done = await socket.chat()

    assert start == {"type": "start", "id": start["id"], "seq": 0, "model": "gpt-4o-mini"}
    assert [(t["seq"], t["content"]) for t in tokens] == [(1, "Hel"), (2, "lo")]
    assert all(set(token) == {"type", "id", "seq", "content"} for token in tokens)
    assert done == {
        "type": "done",
        "id": start["id"],
        "seq": 3,
        "status": "completed",
        "finish_reason": "stop",
        "model": "gpt-4o-mini-2024-07-18",
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "timing": done["timing"],
    }
    assert 0 <= done["timing"]["ttft_ms"] <= done["timing"]["total_ms"]
    assert fake.requests[0].body == {
        "messages": HELLO,
        "model": "gpt-4o-mini",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert joined(tokens) == "Hello"
