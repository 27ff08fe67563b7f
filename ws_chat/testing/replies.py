"""The script of a fake upstream: a reply is a list of steps, executed in order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import asyncio
    import threading
    from collections.abc import Sequence

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream."""


class Cut:
    """Close the connection (FIN) in the middle of the response."""


class Reset:
    """Reset the connection (RST)."""


class Hang:
    """Send nothing more, and leave the connection open."""


class Garbage:
    """Break the chunked transfer coding."""


@dataclass
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass
class Wait:
    """Wait until the test sets the event, which belongs to the server's event loop or to any thread."""

    event: asyncio.Event | threading.Event


Step: TypeAlias = bytes | Cut | Reset | Hang | Garbage | Pause | Wait
"""Each `bytes` is a write of its own, and usually a read of its own at the other end."""


@dataclass
class Reply:
    """A response: its status and headers, and the steps of its body. `head_after` comes before the status line."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    head_after: Sequence[Step] = ()


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chat completion chunk as OpenAI sends it. `logprobs` is set in the choice, others in the chunk."""
    choice: dict[str, Any] = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason, "logprobs": None}
    if "logprobs" in more:
        choice["logprobs"] = more.pop("logprobs")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
        **more,
    }


def usage_chunk(prompt: int = 5, completion: int = 3) -> dict[str, Any]:
    """Return the last chunk of a stream, with the usage in tokens and without a choice."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**chunk(), "choices": [], "usage": usage}


def sse(*values: Any, eol: str = "\n") -> bytes:
    """Return one event per JSON value."""
    return "".join(f"data: {json.dumps(v, ensure_ascii=False)}{eol}{eol}" for v in values).encode()


def text(*contents: str, finish_reason: str | None = "stop", usage: bool = True, done: bool = True) -> list[bytes]:
    """Return the steps of a whole answer, one per event."""
    steps = [sse(chunk({"role": "assistant", "content": ""}))]
    steps += [sse(chunk({"content": content})) for content in contents]
    if finish_reason:
        steps.append(sse(chunk({}, finish_reason)))
    if usage:
        steps.append(sse(usage_chunk(completion=len(contents))))
    return [*steps, DONE] if done else steps


def error_body(message: str, **more: Any) -> bytes:
    """Return an error body of OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **more}}).encode()
