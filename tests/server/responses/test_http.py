"""The Responses protocol over HTTP: start, retrieve, follow after an event, cancel, delete."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.responses import Events, check_response, follow, http, post, response_socket, streamed, text_of
from support.waiting import until

from ws_chat.server import exchange
from ws_chat.testing import Hang, Reply, Wait, chunk, sse, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

A = sse(chunk({"content": "a"}))


@contextlib.asynccontextmanager
async def stream(
    service: Any, method: str = "POST", path: str = "", **fields: Any
) -> AsyncIterator[AsyncIterator[Any]]:
    """Open an event stream; yield its events."""
    body = json.dumps({"input": "hi", "stream": True, **fields}) if method == "POST" else None
    url = f"{service.url}/v1/responses{path}"
    async with httpx.AsyncClient(timeout=None) as client, client.stream(method, url, content=body) as response:
        assert response.status_code == 200

        async def events() -> AsyncIterator[Any]:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))

        yield events()


async def first_delta(events: AsyncIterator[Any]) -> list[dict[str, Any]]:
    seen = []
    async for event in events:
        seen.append(event)
        if event["type"] == "response.output_text.delta":
            return seen
    raise AssertionError(seen)


async def test_an_event_stream(service):
    response = await post(service, stream=True)

    followed = follow(streamed(response))
    assert text_of(followed.seen) == "Hello"
    assert response.headers["x-generation-id"] == followed.response["id"]
    assert response.headers["cache-control"] == "no-cache"


async def test_a_whole_response(service, fake):
    response = await post(service, instructions="Be brief.", stream_id="passed over", type="x", stream_options={"x": 1})

    whole = response.json()
    check_response(whole)
    assert (whole["status"], whole["output"][0]["content"][0]["text"]) == ("completed", "Hello")
    assert response.headers["x-generation-id"] == whole["id"]
    assert (await http(service, "GET", f"/{whole['id']}")).json() == whole
    assert fake.requests[0].body["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("streams", [True, False])
async def test_a_failure_before_the_first_delta_is_an_http_error(streams, service, fake):
    fake.refuse(400, "no such model")
    response = await post(service, stream=streams)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "upstream_rejected"
    response_id = response.headers["x-generation-id"]
    retrieved = (await http(service, "GET", f"/{response_id}")).json()
    check_response(retrieved)
    assert (retrieved["status"], retrieved["error"]["code"]) == ("failed", "invalid_prompt")


async def test_a_failure_after_the_first_delta(service, fake):
    fake.default = Reply([A, sse({"error": {"message": "broken"}})])

    failed = follow(streamed(await post(service, stream=True)))
    assert failed.last["type"] == "response.failed"
    whole = await post(service)
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_unavailable")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"[]", 400, "invalid_request", None),
        ({}, 400, "invalid_request", "input"),
        ({"input": "hi", "background": True}, 400, "invalid_request", "background"),
        ({"input": "hi", "background": True, "store": False, "stream": True}, 400, "invalid_request", "background"),
        ({"input": "hi", "previous_response_id": "x"}, 400, "previous_response_not_found", "previous_response_id"),
        ({"input": "hi", "conversation": "c"}, 400, "invalid_request", "conversation"),
        ({"input": "x" * 3000}, 413, "too_large", None),
    ],
)
async def test_refusals(body, status, code, param, serve):
    service = await serve(max_frame_bytes=2000)
    response = await http(service, "POST", body=body)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert not service.relay.running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/resp_1", 404),
        ("GET", f"/resp_{'0' * 40}", 404),
        ("GET", f"/resp_{'0' * 40}?stream=true", 404),
        ("DELETE", f"/resp_{'0' * 40}", 404),
        ("POST", f"/resp_{'0' * 40}/cancel", 404),
        ("GET", f"/resp_{'0' * 40}?stream=true&starting_after=x", 400),
        ("GET", f"/resp_{'0' * 40}?stream=true&starting_after=-1", 400),
        ("HEAD", f"/resp_{'0' * 40}?stream=true", 404),
        ("PUT", f"/resp_{'0' * 40}", 405),
    ],
)
async def test_what_is_not_there(method, path, status, service):
    async with service.socket() as socket:
        await socket.chat(id="resp_1")

    assert (await http(service, method, path)).status_code == status


async def test_unstored_ones_are_not_found(service):
    unstored = follow(streamed(await post(service, stream=True, store=False)))

    assert (await http(service, "GET", f"/{unstored.response['id']}")).status_code == 404


async def test_the_events_after_each_one(service, fake):
    fake.default = Reply([b"".join(text("Hel", "lo", ", ", "you"))])
    events = streamed(await post(service, stream=True))
    whole = follow(events)
    path = f"/{whole.response['id']}?stream=true"

    assert (await http(service, "HEAD", path)).status_code == 200
    assert text_of(follow(streamed(await http(service, "GET", path))).seen) == "Hello, you"
    count = whole.last["sequence_number"]
    for after in range(count + 3):
        rest = streamed(await http(service, "GET", f"{path}&starting_after={after}"))
        assert all(event["sequence_number"] > after for event in rest)
        assert not rest or rest[-1] == whole.last
        assert bool(rest) == (after < count)
        if after < 3:
            assert text_of(rest) == "Hello, you"


async def test_retrieve_while_it_runs(service, fake):
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b", "c")])
    async with stream(service) as events:
        seen = await first_delta(events)
        response_id = seen[0]["response"]["id"]
        running = (await http(service, "GET", f"/{response_id}")).json()
        check_response(running)
        assert (running["status"], running["output"]) == ("in_progress", [])
        number = seen[-1]["sequence_number"]
        after = asyncio.create_task(http(service, "GET", f"/{response_id}?stream=true&starting_after={number}"))
        beyond = asyncio.create_task(http(service, "GET", f"/{response_id}?stream=true&starting_after={number + 1}"))
        await until(lambda: service.relay._runner._reading == 3, "both to read")
        go.set()
        rest = [event async for event in events]

    assert text_of(streamed(await after)) == "bc"
    assert text_of(rest) == "bc"
    assert text_of(streamed(await beyond)) in ("c", "bc"), "it may be joined"
    followed = Events()
    for event in [*seen, *rest]:
        followed.feed(event)
    assert followed.response == (await http(service, "GET", f"/{response_id}")).json()


async def test_cancel(service, fake):
    fake.default = Reply([A, Hang()])
    async with stream(service, background=True) as events:
        seen = await first_delta(events)
        path = f"/{seen[0]['response']['id']}"
        cancelled = (await http(service, "POST", f"{path}/cancel")).json()
        rest = [event async for event in events]

    check_response(cancelled)
    assert (cancelled["status"], cancelled["incomplete_details"]) == ("cancelled", None)
    assert cancelled["output"][0]["status"] == "incomplete"
    assert rest[-1]["type"] == "response.incomplete"
    assert rest[-1]["response"] == cancelled
    await (await fake.request()).closed.wait()
    assert (await http(service, "POST", f"{path}/cancel")).json() == cancelled, (
        "one that has ended is returned as it is"
    )


async def test_delete(service, fake):
    fake.default = Reply([A, Hang()])
    async with stream(service, background=True) as events:
        seen = await first_delta(events)
        response_id = seen[0]["response"]["id"]
        deleted = await http(service, "DELETE", f"/{response_id}")
        rest = [event async for event in events]

    assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
    assert rest[-1]["response"]["status"] == "cancelled"
    for method, path in (("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("POST", "/cancel")):
        assert (await http(service, method, f"/{response_id}{path}")).status_code == 404


@pytest.mark.parametrize("path", ["fast", "fallback"], indirect=True)
@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_goes_away_cancels_its_response(path, streams, service, fake):
    fake.default = Reply([A, Hang()])
    body = json.dumps({"input": "hi", "stream": streams})
    task = asyncio.create_task(http(service, "POST", body=body.encode()))
    upstream = await fake.request()
    await until(lambda: service.relay._runner._reading, "the reader")
    task.cancel()
    await upstream.closed.wait()
    await until(lambda: service.relay.running == 0, "its end")
    (key,) = service.relay._store._logs
    retrieved = (await http(service, "GET", f"/{key.id}")).json()
    assert retrieved["status"] == "cancelled", "it is kept"


async def test_a_client_that_goes_away_leaves_it_to_other_readers(serve, fake):
    service = await serve(resume_window=600)
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b")])
    async with stream(service) as events:
        response_id = (await first_delta(events))[0]["response"]["id"]
        other = asyncio.create_task(http(service, "GET", f"/{response_id}?stream=true"))
        gone = asyncio.create_task(http(service, "GET", f"/{response_id}?stream=true"))
        await until(lambda: service.relay._runner._reading == 3, "the others")
        gone.cancel()
        await until(lambda: service.relay._runner._reading == 2, "one to go")
        assert service.relay.running == 1, "a reader that leaves ends nothing"
    await until(lambda: service.relay._runner._reading == 1, "the first to go")
    assert service.relay.running == 1
    go.set()
    assert text_of(streamed(await other)) == "ab"


async def test_background_opens_the_resume_window(serve, fake):
    service = await serve(resume_window=600)
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b")])
    async with stream(service, background=True) as events:
        response_id = (await first_delta(events))[0]["response"]["id"]
    await until(lambda: service.relay._runner._reading == 0, "it to go")
    assert (await http(service, "GET", f"/{response_id}")).json()["status"] == "in_progress"
    go.set()
    assert text_of(streamed(await http(service, "GET", f"/{response_id}?stream=true"))) == "ab"


async def test_an_unstored_response_is_forgotten_with_its_request(service, fake):
    fake.default = Reply([A, Hang()])
    async with stream(service, store=False) as events:
        await first_delta(events)
    await until(lambda: service.relay.running == 0, "its end")
    assert not service.relay._store._logs


async def test_a_silent_stream_has_comments(service, fake, monkeypatch):
    monkeypatch.setattr(exchange, "PING_INTERVAL", 0.05)
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b")])
    url = service.url + "/v1/responses"
    body = json.dumps({"input": "hi", "stream": True})
    async with httpx.AsyncClient(timeout=None) as client, client.stream("POST", url, content=body) as response:
        async for line in response.aiter_lines():
            if line == ": ping":
                go.set()
        assert line == "" or line == "data: [DONE]"


async def test_responses_are_continued_over_http(service, fake):
    first = (await post(service)).json()
    second = (await post(service, previous_response_id=first["id"], input="more")).json()

    assert second["previous_response_id"] == first["id"]
    assert [message["content"] for message in fake.requests[1].body["messages"]] == ["hi", "Hello", "more"]


async def test_one_that_failed_before_its_first_delta_is_kept_small(service, fake):
    tools = [{"type": "function", "name": "f", "description": "x" * 5000}]
    fake.refuse(400, "no")
    fake.refuse(400, "no")
    small, large = [
        (await post(service, **fields)).headers["x-generation-id"] for fields in ({"user": "u"}, {"tools": tools})
    ]

    assert (await http(service, "GET", f"/{small}")).json()["user"] == "u"
    kept = (await http(service, "GET", f"/{large}")).json()
    assert (kept["status"], kept["tools"]) == ("failed", [])
    assert all(len(log.request) < 500 for log in service.relay._store._logs.values())


async def test_places_are_freed_while_the_server_drains(service, fake):
    fake.default = Reply([A, Hang()])
    async with response_socket(service) as client:
        await client.create()
        response_id = (await client.receive())["response"]["id"]
        service.connections.drain(600)
        assert (await http(service, "GET", f"/{response_id}")).status_code == 503
        assert (await http(service, "POST", f"/{response_id}/cancel")).json()["status"] == "cancelled"
        assert (await http(service, "DELETE", f"/{response_id}")).status_code == 200
