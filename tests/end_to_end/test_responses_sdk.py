"""The official SDK, unmodified, with the demo behind it: over HTTP and over WebSocket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from support.processes import ROOT, output
from support.service import Service, running

from ws_chat import Settings, create_app
from ws_chat.server.thread import serving
from ws_chat.testing import Reply, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture(scope="module")
async def demo() -> AsyncIterator[Service]:
    settings = Settings(upstream="demo", drain_timeout=0)
    async with running(create_app(settings), settings) as service:
        yield service


def client_of(service: Service, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", **options)


@pytest.fixture
async def client(demo) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(demo) as client:
        yield client


async def test_stream(client):
    async with client.responses.stream(model="demo-fast", input="hi", instructions="Be brief.") as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()

    assert "".join(texts) == final.output_text
    assert "You said: “hi”" in final.output_text
    assert final.usage
    assert final.usage.output_tokens == len(texts)


async def test_create_retrieve_and_delete(client):
    created = await client.responses.create(model="demo-fast", input="hi", metadata={"a": "b"})
    retrieved = await client.responses.retrieve(created.id)
    assert retrieved == created
    assert retrieved.metadata == {"a": "b"}
    assert retrieved.completed_at
    assert retrieved.completed_at >= retrieved.created_at

    all_of_it = [event async for event in await client.responses.retrieve(created.id, stream=True)]
    middle = all_of_it[4].sequence_number
    rest = [event async for event in await client.responses.retrieve(created.id, stream=True, starting_after=middle)]
    assert rest[-1] == all_of_it[-1]
    assert rest[0].sequence_number > middle

    await client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(created.id)


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # of websockets, for how the SDK calls it
def test_without_asyncio():
    settings = Settings(upstream="demo", drain_timeout=0)
    with (
        serving(create_app(settings), settings) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        client.responses.connect() as connection,
    ):
        connection.response.create(model="demo-fast", input="hi")
        for event in connection:
            if event.type == "response.completed":
                break
        assert client.responses.retrieve(event.response.id) == event.response
        whole = client.responses.create(model="demo-fast", input="hi")
        assert whole.output_text == event.response.output_text


async def test_cancel_in_the_background(client):
    stream = await client.responses.create(model="demo-slow", input="hi", background=True, stream=True)
    created = await anext(aiter(stream))
    cancelled = await client.responses.cancel(created.response.id)
    assert cancelled.status == "cancelled"
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"


async def test_tools_over_a_websocket(client):
    async with client.responses.connect() as connection:

        async def respond(**fields: Any) -> Any:
            await connection.response.create(model="demo-tools", tools=[WEATHER], store=False, **fields)
            async for event in connection:
                assert event.type != "error", event
                if event.type == "response.completed":
                    return event.response
            raise AssertionError

        first = await respond(input="How is the weather?")
        names = [item.name for item in first.output]
        assert names == ["get_weather", "get_time"]
        assert json.loads(first.output[0].arguments) == {"city": "Kyoto", "unit": "celsius"}
        outputs = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"} for item in first.output
        ]
        second = await respond(previous_response_id=first.id, input=outputs)
        assert "The tool says: sunny" in second.output_text


async def test_reasoning_and_failures_over_a_websocket(client):
    async with client.responses.connect() as connection:
        await connection.response.create(model="demo-reasoning", input="hi")
        async for event in connection:
            if event.type == "response.completed":
                break
        assert [item.type for item in event.response.output] == ["reasoning", "message"]
        await connection.response.create(model="demo-error", input="hi")
        *_, error = [await connection.recv() for _ in range(3)]
        assert (error.type, error.status, error.error.code) == ("error", 502, "upstream_unavailable")
        await connection.response.create(model="demo-break", input="hi")
        async for event in connection:
            if event.type == "response.failed":
                break
        assert event.response.error.code == "server_error"
        assert event.response.output[0].status == "incomplete"


async def test_an_answer_in_a_schema(serve, fake):
    class Point(BaseModel):
        x: int

    service = await serve()
    fake.default = Reply(text('{"x"', ": 3}"))
    async with client_of(service) as client:
        parsed = await client.responses.parse(input="hi", text_format=Point)
        async with client.responses.stream(model="m", input="hi", text_format=Point) as stream:
            streamed = await stream.get_final_response()

    assert parsed.output_parsed == streamed.output_parsed == Point(x=3)
    sent = fake.requests[0].body["response_format"]
    assert (sent["type"], sent["json_schema"]["name"]) == ("json_schema", "Point")


async def test_errors_over_http(serve, fake):
    service = await serve(api_keys=["secret"])
    async with client_of(service, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.responses.create(input="hi")
    fake.refuse(400, "no such model")
    async with client_of(service, max_retries=0, default_headers={"Authorization": "Bearer secret"}) as client:
        with pytest.raises(openai.BadRequestError, match="no such model"):
            await client.responses.create(input="hi", stream=True)
        with pytest.raises(openai.BadRequestError, match="There is no response"):
            await client.responses.create(input="hi", previous_response_id="resp_1")


async def test_agents_call_their_tools(demo):
    """The OpenAI Agents SDK, over HTTP and WebSocket, and pydantic-ai: each runs a loop with two tools."""
    python = ROOT / ".venv/agents/bin/python"
    if not python.exists():
        pytest.skip("needs .venv/agents: .ci/tools creates it")
    status, out, err = await output(str(python), str(ROOT / "tests/end_to_end/agent_loops.py"), WS_CHAT_URL=demo.url)

    assert status == 0, err.decode()
    loops = json.loads(out)
    assert len(loops) == 4
    for loop in loops.values():
        assert loop["called"] == [["get_time", "Asia/Tokyo"], ["get_weather", "Kyoto", "celsius"]]
        assert loop["output"].startswith("The tool says: ")
