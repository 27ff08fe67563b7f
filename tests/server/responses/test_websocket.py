"""The Responses protocol over WebSocket: lanes, limits, cancel, continuing, and what stays when a socket closes."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from support.responses import follow, http, post, response_socket, streamed, text_of
from support.waiting import until
from websockets.exceptions import ConnectionClosed

from ws_chat.testing import DONE, Hang, Reply, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio

A = sse(chunk({"content": "a"}))
OTHER = {"Authorization": "Bearer other"}


def held(event: asyncio.Event) -> list[object]:
    """A reply that says "a", and "b" once the event is set."""
    return [A, Wait(event), *text("b")]


def outputs(call_id: str) -> list[dict[str, str]]:
    return [{"type": "function_call_output", "call_id": call_id, "output": "sunny"}]


@pytest.fixture
async def shared(fake, serve):
    """A server that resumes for long, and keeps for long."""
    return await serve(resume_window=600, retention=600)


async def test_an_answer(service, fake):
    async with response_socket(service) as client:
        response = (await client.respond(model="m", instructions="Be brief.", temperature=0, stream="?")).response

    assert (response["status"], response["model"]) == ("completed", "gpt-4o-mini-2024-07-18")
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"]["total_tokens"] == 7
    assert (response["instructions"], response["temperature"], response["store"]) == ("Be brief.", 0, True)
    body = fake.requests[0].body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (body["model"], body["temperature"]) == ("m", 0)


async def test_bytes_are_read_as_text(service):
    async with response_socket(service) as client:
        await client.send(json.dumps({"type": "response.create", "input": "hi"}).encode())
        assert (await client.until_end()).response["status"] == "completed"


async def test_a_lane_answers_in_order_and_lanes_at_once(service, fake):
    go = asyncio.Event()
    fake.default = Reply(held(go))
    async with response_socket(service) as client:
        for lane in ("one", "one", None):
            await client.create(**({"stream_id": lane} if lane else {}))
        started = []
        while len(started) < 2:
            event = await client.receive()
            if event["type"] == "response.output_text.delta":
                started.append(event.get("stream_id"))
        assert sorted(started, key=str) == [None, "one"]
        assert len(fake.requests) == 2, "the second of the lane waits"
        go.set()
        texts = []
        while len(texts) < 3:
            event = await client.receive()
            if event["type"] == "response.completed":
                texts.append(event["response"]["output"][0]["content"][0]["text"])
    assert texts == ["ab", "ab", "ab"]


async def test_a_request_may_name_the_response_before_it_in_its_lane(service, fake):
    go = asyncio.Event()
    fake.reply(held(go))
    async with response_socket(service) as client:
        await client.create(store=False, stream_id="x")
        created = await client.receive()
        await client.create(store=False, stream_id="x", previous_response_id=created["response"]["id"], input="more")
        go.set()
        while (await client.receive())["type"] != "response.completed":
            pass
        second = await client.until_end("x")
    assert second.response["previous_response_id"] == created["response"]["id"]
    assert [message["content"] for message in fake.requests[1].body["messages"]] == ["hi", "ab", "more"]


async def test_limits_are_checked_on_arrival(serve, fake):
    service = await serve(max_generations_per_connection=2)
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create(stream_id="x")
        await client.create(stream_id="x")
        await client.create(stream_id="y")
        while (event := await client.receive())["type"] != "error":
            pass
        assert event["stream_id"] == "y"
        assert (event["status"], event["error"]["code"]) == (429, "too_many_generations")
        assert event["error"]["headers"] == {"Retry-After": "1"}
        await fake.request()
        assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[]", "invalid_request", "type"),
        ({"input": "hi"}, "invalid_request", "type"),
        ({"type": "chat"}, "invalid_request", "type"),
        ({"type": ["response.create"]}, "invalid_request", "type"),
        ({"type": "response.create"}, "invalid_request", "input"),
        ({"type": "response.create", "input": "hi", "stream_id": "a b"}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create", "input": "hi", "stream_id": 5}, "invalid_stream_id", "stream_id"),
        (
            {"type": "response.create", "input": "hi", "previous_response_id": "resp_1"},
            "previous_response_not_found",
            "previous_response_id",
        ),
        (
            {"type": "response.create", "input": "hi", "previous_response_id": f"resp_{'0' * 40}"},
            "previous_response_not_found",
            "previous_response_id",
        ),
        ({"type": "response.create", "input": outputs("c")}, "invalid_request", "input"),
        (
            {"type": "response.create", "input": "hi", "background": True, "store": False},
            "invalid_request",
            "background",
        ),
        ({"type": "response.cancel"}, "invalid_request", "response_id"),
        ({"type": "response.cancel", "response_id": 5}, "invalid_request", "response_id"),
        ({"type": "response.cancel", "response_id": "resp_1"}, "not_found", "response_id"),
        ({"type": "response.cancel", "response_id": f"resp_{'0' * 40}"}, "not_found", "response_id"),
        ({"type": "response.steer", "input": "hi"}, "invalid_request", "previous_response_id"),
        ({"type": "response.steer", "previous_response_id": "resp_1", "input": None}, "invalid_request", "input"),
    ],
)
async def test_a_refusal_leaves_the_socket_open(frame, code, param, service):
    async with response_socket(service) as client:
        event = await client.ask(frame)
        assert (event["type"], event["error"]["code"], event["error"]["param"]) == ("error", code, param)
        assert "sequence_number" not in event
        assert "headers" not in event["error"]
        assert "stream_id" not in event
        assert (await client.respond()).response["status"] == "completed"


async def test_steering_is_not_supported(service):
    steer = {"input": [{"role": "user", "content": "b"}], "previous_response_id": "resp_1"}
    async with response_socket(service) as client:
        event = await client.ask({"type": "response.steer", **steer})
        assert event["type"] == "response.steer.failed"
        assert (event["sequence_number"], event["steer"]) == (0, steer)
        assert event["error"]["code"] == "steering_not_supported"
        await client.send({"type": "response.processed", "response_id": "resp_1"})
        assert (await client.respond()).response["status"] == "completed", "the other frame was passed over"


async def test_nothing_is_generated_without_generate(service, fake):
    async with response_socket(service) as client:
        first = await client.respond(store=False, generate=False, instructions="Be brief.", input="Remember: 42")
        assert first.kinds == ["created", "in_progress", "completed"]
        assert first.response["output"] == []
        assert not fake.requests
        empty = await client.respond(generate=False, input=[], store=False)
        for previous in (first, empty):
            await client.respond(previous_response_id=previous.response["id"])
    after_first, after_empty = (request.body["messages"] for request in fake.requests)
    assert after_first == [{"role": "user", "content": "Remember: 42"}, {"role": "user", "content": "hi"}]
    assert after_empty == [{"role": "user", "content": "hi"}]


async def test_a_conversation_with_a_tool(service, fake):
    call = {"index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    fake.reply([sse(chunk({"tool_calls": [call]})), sse(chunk({}, "tool_calls")), DONE])
    tools = [{"type": "function", "name": "f"}]
    async with response_socket(service) as client:
        first = (await client.respond(tools=tools, store=False)).response
        call_id = first["output"][0]["call_id"]
        assert call_id == "call_0", "the upstream sent none"
        second = await client.respond(
            previous_response_id=first["id"], input=outputs(call_id), tools=tools, store=False
        )
        assert second.response["status"] == "completed"
        unknown = await client.ask(
            {"type": "response.create", "previous_response_id": second.response["id"], "input": outputs("call_1")}
        )
        assert unknown["error"]["param"] == "input"
    _, assistant, tool = fake.requests[1].body["messages"]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "call_0"


async def test_instructions_are_not_inherited_and_the_model_is(service, fake):
    async with response_socket(service) as client:
        first = await client.respond(instructions="Be brief.", model="m-1")
        await client.respond(previous_response_id=first.response["id"], instructions="Be long.")
    body = fake.requests[1].body
    assert [message["content"] for message in body["messages"]] == ["Be long.", "hi", "Hello", "hi"]
    assert body["model"] == "m-1"


async def test_a_running_response_is_not_continued_from(service, fake):
    fake.reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create()
        created = await client.receive()
        await client.create(stream_id="y", previous_response_id=created["response"]["id"])
        while (event := await client.receive())["type"] != "error":
            pass
        assert (event["error"]["code"], event["error"]["param"]) == ("invalid_request", "previous_response_id")
        assert len(service.relay._runner._running) == 1


async def test_cancel(service, fake):
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create()
        assert (await client.receive())["type"] == "response.created"
        await client.send({"type": "response.cancel"})
        await client.create(stream_id="y")
        created = await client.receive()
        while created["type"] != "response.created":
            created = await client.receive()
        response_id = created["response"]["id"]
        await client.send({"type": "response.cancel", "response_id": response_id})
        while (event := await client.receive())["type"] != "response.incomplete" or event.get("stream_id") != "y":
            pass
        assert (event["response"]["status"], event["response"]["incomplete_details"]) == ("cancelled", None)
        await client.send({"type": "response.cancel", "response_id": response_id})
        fake.default = Reply(text("b"))
        assert text_of((await client.respond()).seen) == "b", "to cancel what has ended is not answered"


async def test_cancel_without_an_id_needs_exactly_one(service, fake):
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        for lane in ("x", "y"):
            await client.create(stream_id=lane)
        await client.send({"type": "response.cancel"})
        while (event := await client.receive())["type"] != "error":
            pass
        assert event["error"]["param"] == "response_id"
        assert "2 responses" in event["error"]["message"]


async def test_cancel_right_behind_its_request(service, fake):
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create(stream_id="x")
        await client.send({"type": "response.cancel"})
        assert (await client.until_end("x")).response["status"] == "cancelled"


async def test_a_failure_before_the_first_delta_is_an_error(service, fake):
    fake.refuse(429, "slow down", Retry_After="7")
    fake.refuse(429, "slow down", Retry_After="7")
    fake.refuse(429, "slow down", Retry_After="7")
    async with response_socket(service) as client:
        await client.create(stream_id="x")
        events = [await client.receive() for _ in range(3)]
        response_id = events[0]["response"]["id"]
        retrieved = (await http(service, "GET", f"/{response_id}")).json()
        replayed = follow(streamed(await http(service, "GET", f"/{response_id}?stream=true")))

    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "error"]
    assert all(event["stream_id"] == "x" for event in events)
    error = events[-1]
    assert (error["sequence_number"], error["status"], error["error"]["code"]) == (2, 429, "upstream_rate_limited")
    assert error["error"]["headers"] == {"Retry-After": "7"}
    assert (retrieved["status"], retrieved["error"]["code"]) == ("failed", "rate_limit_exceeded")
    assert replayed.kinds == ["created", "in_progress", "failed"]
    assert replayed.response == retrieved


async def test_a_failure_after_it_is_the_responses(service, fake):
    fake.reply([A, sse({"error": {"message": "broken"}})])
    async with response_socket(service) as client:
        failed = await client.respond()
    assert failed.last["type"] == "response.failed"
    assert failed.response["error"] == {"code": "server_error", "message": "broken"}


async def test_a_failed_or_refused_request_evicts_the_unstored_response_that_it_named(service, fake):
    async with response_socket(service) as client:

        async def code_after(**fields: object) -> str:
            """Return the code of a request that continues from a response, after another one that went wrong."""
            previous = (await client.respond(store=fields.pop("stored", False))).response["id"]
            await client.create(previous_response_id=previous, **fields)
            while (await client.receive())["type"] not in ("error", "response.failed"):
                pass
            await client.create(previous_response_id=previous)
            event = await client.receive()
            if event["type"] == "error":
                return event["error"]["code"]
            while event["type"] != "response.completed":
                event = await client.receive()
            return event["type"]

        gone = "previous_response_not_found"
        assert await code_after(input=5) == gone
        assert await code_after(input=outputs("c")) == gone
        fake.replies = [Reply(text("a")), Reply([A, sse({"error": {"message": "broken"}})])]
        assert await code_after() == gone
        assert await code_after(input=5, stored=True) == "response.completed"


async def test_eviction_of_one_that_runs_waits_for_its_end(service, fake):
    go = asyncio.Event()
    fake.reply(held(go))
    async with response_socket(service) as client:
        await client.create(store=False, stream_id="x")
        running = (await client.receive())["response"]["id"]
        await client.create(previous_response_id=running, input=5)
        while (await client.receive())["type"] != "error":
            pass
        go.set()
        while (await client.receive())["type"] != "response.completed":
            pass
        await client.create(previous_response_id=running)
        event = await client.receive()
    assert event["error"]["code"] == "previous_response_not_found"


async def test_unstored_responses_are_of_their_socket(service):
    async with response_socket(service) as client, response_socket(service) as other:
        unstored = (await client.respond(store=False)).response["id"]
        stored = (await client.respond()).response["id"]
        event = await other.ask({"type": "response.create", "input": "hi", "previous_response_id": unstored})
        assert event["error"]["code"] == "previous_response_not_found"
        assert (await http(service, "GET", f"/{unstored}")).status_code == 404
        assert (await other.respond(previous_response_id=stored)).response["status"] == "completed"


async def test_a_chats_generation_is_no_response(service):
    async with service.socket() as socket:
        named = f"resp_{'0' * 40}"
        await socket.chat(id=named)
    async with response_socket(service) as client:
        event = await client.ask({"type": "response.create", "input": "hi", "previous_response_id": named})
        assert event["error"]["code"] == "previous_response_not_found"
        event = await client.ask({"type": "response.cancel", "response_id": named})
        assert event["error"]["code"] == "not_found"


async def test_what_is_left_when_a_socket_closes(shared, fake):
    fake.default = Reply([A, Hang()])
    ids = {}
    async with response_socket(shared) as client:
        for name, fields in {
            "unstored": {"store": False},
            "stored": {},
            "background": {"background": True},
        }.items():
            await client.create(stream_id=name, **fields)
            while (event := await client.receive())["type"] != "response.output_text.delta":
                if event["type"] == "response.created":
                    ids[name] = event["response"]["id"]
        await client.create(stream_id="stored")  # waits, and never runs
    await until(lambda: shared.relay.running == 1, "two to be cancelled")

    statuses = {name: await http(shared, "GET", f"/{response_id}") for name, response_id in ids.items()}
    assert statuses["unstored"].status_code == 404
    assert statuses["stored"].json()["status"] == "cancelled"
    assert statuses["background"].json()["status"] == "in_progress"
    assert len(fake.requests) == 3
    cancelled = await http(shared, "POST", f"/{ids['background']}/cancel")
    assert cancelled.json()["status"] == "cancelled"


async def test_a_background_response_is_cancelled_after_the_resume_window(serve, fake):
    service = await serve(resume_window=0.05)
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create(background=True)
        response_id = (await client.receive())["response"]["id"]
    await until(lambda: service.relay.running == 0, "the resume window to pass")
    assert (await http(service, "GET", f"/{response_id}")).json()["status"] == "cancelled"


async def test_readers_of_a_deleted_response_get_its_end(shared, fake):
    fake.reply([A, Hang()])
    async with response_socket(shared) as client:
        await client.create()
        response_id = (await client.receive())["response"]["id"]
        assert (await http(shared, "DELETE", f"/{response_id}")).json()["deleted"] is True
        while (event := await client.receive())["type"] != "response.incomplete":
            pass
        assert event["response"]["status"] == "cancelled"
        event = await client.ask({"type": "response.create", "input": "hi", "previous_response_id": response_id})
        assert event["error"]["code"] == "previous_response_not_found"


async def test_a_chat_client_follows_a_response(service):
    async with response_socket(service) as client:
        response_id = (await client.respond()).response["id"]
    async with service.socket() as socket:
        await socket.send({"type": "resume", "id": response_id})
        frames = await socket.until_end()
        assert "".join(frame.get("content", "") for frame in frames) == "Hello"
        await socket.send({"messages": [{"role": "user", "content": "more"}], "previous_id": response_id})
        assert (await socket.until_end())[-1]["status"] == "completed"


async def test_keys_and_origins(serve, fake):
    service = await serve(api_keys=["secret", "other"])
    with pytest.raises(Exception, match="401"):
        async with response_socket(service):
            pass
    async with response_socket(service, additional_headers={"Authorization": "Bearer secret"}) as client:
        response_id = (await client.respond()).response["id"]
    assert (await http(service, "GET", f"/{response_id}", **OTHER)).status_code == 404
    with pytest.raises(Exception, match="403"):
        async with response_socket(service, origin="https://evil.example", additional_headers=OTHER):
            pass


async def test_a_plain_get_needs_an_upgrade(serve):
    service = await serve(api_keys=["secret"])
    response = await http(service, "GET")
    assert response.status_code == 426
    assert response.headers["upgrade"] == "websocket"
    assert response.json()["error"]["code"] == "invalid_request"


async def test_a_frame_that_is_too_large_closes_the_socket(serve):
    service = await serve(max_frame_bytes=2000)
    async with response_socket(service) as client:
        await client.create(input="x" * 3000)
        with pytest.raises(ConnectionClosed) as caught:
            await client.receive()
    assert caught.value.rcvd.code == 1009


async def test_no_goaway_and_new_requests_are_refused_while_draining(serve, fake):
    service = await serve(drain_timeout=600)
    go = asyncio.Event()
    fake.reply(held(go))
    async with response_socket(service) as client:
        await client.create()
        while (await client.receive())["type"] != "response.output_text.delta":
            pass
        drain = asyncio.create_task(service.relay.drain(600))
        service.connections.drain(600)
        await until(lambda: service.relay.draining, "the drain")
        await client.create(stream_id="y")
        event = await client.receive()
        assert (event["status"], event["error"]["code"]) == (503, "draining")
        assert event["error"]["headers"] == {"Retry-After": "1"}
        go.set()
        while (await client.receive())["type"] != "response.completed":
            pass
        await drain


async def test_it_is_measured_as_responses(service):
    async with response_socket(service) as client:
        await client.respond()
    await post(service)
    async with httpx.AsyncClient(timeout=None) as web:
        metrics = (await web.get(service.url + "/metrics")).text
    assert 'ws_chat_generations_total{door="responses",status="completed"} 2.0' in metrics
