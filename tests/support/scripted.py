"""A WebSocket server that sends exactly what a test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@contextlib.asynccontextmanager
async def scripted(handle: Callable[[ServerConnection], Awaitable[None]], **options: Any) -> AsyncIterator[str]:
    """Serve sockets with `handle` until the block ends; yield the URL. What `handle` raises ends the block."""
    test = asyncio.current_task()
    assert test
    failures: list[Exception] = []

    async def watched(socket: ServerConnection) -> None:
        try:
            await handle(socket)
        except ConnectionClosed:
            raise
        except Exception as error:
            failures.append(error)
            test.cancel()
            raise

    async with serve(watched, "127.0.0.1", 0, **options) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        except asyncio.CancelledError:
            if failures:
                test.uncancel()
                raise failures[0] from None
            raise


async def send_frames(socket: ServerConnection, generation_id: str | None, *frames: dict[str, Any]) -> None:
    """Send frames of a generation."""
    for frame in frames:
        await socket.send(json.dumps({**frame, **({"id": generation_id} if generation_id else {})}))


def start(seq: int = 0) -> dict[str, Any]:
    return {"type": "start", "seq": seq, "model": "m"}


def token(seq: int, content: str) -> dict[str, Any]:
    return {"type": "token", "seq": seq, "content": content}


def done(seq: int, status: str = "completed") -> dict[str, Any]:
    return {"type": "done", "seq": seq, "status": status, "finish_reason": "stop", "model": "m"}


def refusal(code: str, kind: str, *, retryable: bool) -> dict[str, Any]:
    error = {"type": kind, "code": code, "message": "no", "param": None, "status": 400, "retryable": retryable}
    return {"type": "error", "error": error}
