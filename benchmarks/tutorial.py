"""The baseline: the server of the usual tutorial, and the same with the asynchronous client.

To be measured, not to be copied: an answer that breaks off looks complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI, OpenAI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def create_sync_app() -> FastAPI:
    """Return the tutorial's app: a synchronous generator, which Starlette runs in threads."""
    app = FastAPI()
    client = OpenAI()

    @app.post("/v1/chat/stream")
    async def stream(request: Request) -> StreamingResponse:
        body: dict[str, Any] = await request.json()

        def events() -> Iterator[str]:
            for chunk in client.chat.completions.create(model="gpt-4o-mini", stream=True, messages=body["messages"]):
                if chunk.choices and (content := chunk.choices[0].delta.content):
                    yield f"data: {content}\n\n"
            yield "event: done\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def create_async_app() -> FastAPI:
    """Return the same app with the asynchronous client."""
    app = FastAPI()
    client = AsyncOpenAI()

    @app.post("/v1/chat/stream")
    async def stream(request: Request) -> StreamingResponse:
        body: dict[str, Any] = await request.json()

        async def events() -> AsyncIterator[str]:
            chunks = await client.chat.completions.create(model="gpt-4o-mini", stream=True, messages=body["messages"])
            async for chunk in chunks:
                if chunk.choices and (content := chunk.choices[0].delta.content):
                    yield f"data: {content}\n\n"
            yield "event: done\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
