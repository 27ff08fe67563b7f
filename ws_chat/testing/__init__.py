"""For tests of what is built on ws_chat: an OpenAI-compatible server that says what a test tells it to.

`FakeOpenAI` is that server; `text` and the other functions write its replies, `Cut`, `Hang` and their like break them.
`serving` runs an application on a free port. Where pytest runs, the fixtures `fake_openai` and `ws_chat_url` are there
by themselves (`ws_chat.testing.pytest_plugin`).
"""

from ws_chat.testing.fake_openai import FakeOpenAI, Recorded
from ws_chat.testing.replies import (
    DONE,
    Cut,
    Garbage,
    Hang,
    Pause,
    Reply,
    Reset,
    Step,
    Wait,
    chunk,
    error_body,
    sse,
    text,
    usage_chunk,
)
from ws_chat.testing.serving import serving

__all__ = [
    "DONE",
    "Cut",
    "FakeOpenAI",
    "Garbage",
    "Hang",
    "Pause",
    "Recorded",
    "Reply",
    "Reset",
    "Step",
    "Wait",
    "chunk",
    "error_body",
    "serving",
    "sse",
    "text",
    "usage_chunk",
]
