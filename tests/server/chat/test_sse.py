from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import httpx
import pytest
from protocol.test_frames import BAD_FRAMES, BAD_JSON
from support.peers import POST, SMALL, connected, narrow, unchunked
from support.service import HELLO, both_paths, events
from support.waiting import until

from ws_chat.protocol.sse import PING
from ws_chat.server import exchange
from ws_chat.testing import Hang, Pause, Reply, Wait, chunk, sse, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ws_chat.testing import Step

pytestmark = [pytest.mark.anyio, both_paths]

A = sse(chunk({"content": "a"}))


async def test_the_text_format_byte_for_byte(service, fake):
    response = await service.post()

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert len(response.headers["x-generation-id"]) == 22
    assert response.content == b"data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n"


async def test_the_frames_format_byte_for_byte(service, fake):
    response = await service.post(query="?format=frames")

    generation = response.headers["x-generation-id"]
    head = f'"id":"{generation}","seq"'
    *_, done = events(response.content)
    assert response.content.decode() == (
        f'event: start\nid: 0\ndata: {{"type":"start",{head}:0,"model":"gpt-4o-mini"}}\n\n'
        f'event: token\nid: 1\ndata: {{"type":"token",{head}:1,"content":"Hel"}}\n\n'
        f'event: token\nid: 2\ndata: {{"type":"token",{head}:2,"content":"lo"}}\n\n'
        f"event: done\nid: 3\ndata: {done['data']}\n\n"
    )


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_body_is_json_whatever_it_says_it_is(content_type, service, fake):
    response = await service.post(json.dumps(HELLO).encode(), **{"Content-Type": content_type})

    assert response.status_code == 200
    assert fake.requests[0].body["messages"] == HELLO


async def test_a_bad_body_is_400(service, fake):
    for name in [*BAD_JSON, *BAD_FRAMES]:
        data, param = (BAD_JSON[name], None) if name in BAD_JSON else BAD_FRAMES[name]
        response = await service.post(data.encode(errors="surrogatepass") if isinstance(data, str) else data)

        assert response.status_code == 400, name
        assert response.json()["error"]["code"] == ("invalid_json" if name in BAD_JSON else "invalid_request"), name
        assert response.json()["error"]["param"] == param, name
    assert fake.requests == []


@pytest.mark.parametrize(
    ("body", "query", "param"),
    [
        ({"messages": HELLO}, "?format=xml", "format"),
        ({"messages": HELLO}, "?format=", "format"),
        ({"messages": HELLO, "id": "r 1"}, "", "id"),
        ({"messages": HELLO, "previous_id": ""}, "", "previous_id"),
        ({"type": "ping"}, "", "type"),
        ({"type": "cancel", "id": "r1"}, "", "type"),
        ({"type": "resume", "id": "r1"}, "", "type"),
    ],
)
async def test_an_invalid_request_is_400(body, query, param, service, fake):
    response = await service.post(body, query=query)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"
    assert response.json()["error"]["param"] == param
    assert fake.requests == []


async def test_a_body_that_is_too_large_is_413(serve, fake):
    service = await serve(max_frame_bytes=1000)

    async def in_parts():
        for _ in range(3):
            yield b" " * 500

    assert (await service.post(json.dumps(HELLO).encode().ljust(1000))).status_code == 200
    declared = await service.post(b" " * 1001)
    async with httpx.AsyncClient(timeout=None) as client:
        streamed = await client.post(service.stream_url, content=in_parts())

    for response in (declared, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "too_large"


async def test_a_body_that_is_too_large_is_read_before_it_is_refused(serve, monkeypatch):
    """A connection that is closed with unread bytes is reset, and with it the response that is on its way."""
    monkeypatch.setattr(exchange, "DISCARD_TIMEOUT", 600)
    service = await serve(max_frame_bytes=1000)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b" " * 2000)
    await until(lambda: service.connections.open, "the request to arrive")
    async with service.socket() as other:
        assert (await other.ask({"type": "ping"}))["type"] == "pong"
        assert service.connections.open == 2, "it is not refused yet"
    writer.write(b" " * 1000)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_without_an_end_is_refused(serve, monkeypatch):
    monkeypatch.setattr(exchange, "DISCARD_TIMEOUT", 600)
    service = await serve(max_frame_bytes=1000)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n" + b" " * 5100)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.parametrize(
    ("method", "place", "status", "code"),
    [
        ("GET", "/v1/chat/stream/nobody", 404, "not_found"),
        ("DELETE", "/v1/chat/stream/nobody", 404, "not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/stream", 405, "invalid_request"),
        ("PUT", "/v1/chat/stream", 405, "invalid_request"),
    ],
)
async def test_what_is_not_there_is_answered_with_the_error_object(method, place, status, code, service):
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.request(method, service.url + place)

    assert response.status_code == response.json()["error"]["status"] == status
    assert response.json()["error"]["code"] == code


async def test_the_request_is_described(service):
    async with httpx.AsyncClient(timeout=None) as client:
        page = (await client.get(service.url + "/openapi.json")).json()

    assert {"/v1/chat/stream", "/v1/chat/stream/{id}", "/healthz", "/readyz", "/metrics"} <= set(page["paths"])
    assert set(page["paths"]["/v1/chat/stream/{id}"]) == {"get", "delete"}
    assert page["components"]["schemas"]["ChatRequest"]["required"] == ["messages"]


async def test_health(service):
    async with httpx.AsyncClient(timeout=None) as client:
        for place in ("/healthz", "/readyz"):
            assert (await client.get(service.url + place)).status_code == 200
            assert (await client.head(service.url + place)).status_code == 200


async def test_the_status_line_waits_for_the_first_delta(service, fake):
    gate = asyncio.Event()
    fake.reply([sse(chunk({"role": "assistant", "content": ""})), Wait(gate), A, *text()])
    async with httpx.AsyncClient(timeout=None) as client:
        sending = asyncio.create_task(
            client.send(client.build_request("POST", service.stream_url, json={"messages": HELLO}), stream=True)
        )
        await fake.request()
        assert (await service.post()).status_code == 200, "another request is answered"
        assert not sending.done(), "answered before the first delta"
        gate.set()
        response = await sending
        assert response.status_code == 200
        await response.aclose()


async def test_a_comment_is_sent_in_silence(service, fake, monkeypatch):
    monkeypatch.setattr(exchange, "PING_INTERVAL", 0.05)
    gate = asyncio.Event()
    fake.default = Reply([A, Wait(gate), *text("b")])
    received = b""
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO}) as response,
    ):
        async for part in response.aiter_raw():
            received += part
            if received.partition(b"data: a\n\n")[2].count(PING) >= 2:  # there may be others before it
                gate.set()

    assert b"data: a\n\n: ping\n\n: ping\n\n" in received
    assert [event["data"] for event in events(received)] == ["a", "b", "[DONE]"]


async def test_a_comment_is_sent_while_the_upstream_says_nothing_to_read(service, fake, monkeypatch):
    monkeypatch.setattr(exchange, "PING_INTERVAL", 0.05)
    gate = asyncio.Event()

    def steps() -> Iterator[Step]:
        while not gate.is_set():
            yield sse(chunk({"reasoning_content": "hm"}))
            yield Pause(0.01)
        yield from text("a")

    fake.default = Reply(steps())
    received = b""
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO}) as response,
    ):
        async for part in response.aiter_raw():
            received += part
            gate.set()

    assert received.startswith(PING)


@pytest.mark.usefixtures("only_fast")
async def test_a_pipelined_upgrade_does_not_break_the_answer(service, fake):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = json.dumps({"messages": HELLO}).encode()
    upgrade = b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + upgrade)
    raw = await reader.read(-1)
    writer.close()

    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_only_content_appears_as_text(service, fake):
    fake.default = Reply(
        [sse(chunk({"reasoning_content": "hm"})), sse(chunk({"refusal": "no"})), *text("a", finish_reason="length")]
    )

    assert (await service.post()).content == b"data: a\n\nevent: done\ndata: [DONE]\n\n"


async def test_an_answer_without_text_is_just_done(service, fake):
    fake.default = Reply(text())

    assert (await service.post()).content == b"event: done\ndata: [DONE]\n\n"


async def test_a_slow_reader_over_sse_gets_the_same_text(service, fake):
    words = [f"{number:06} " * 1500 for number in range(200)]  # more than the buffers hold
    fake.default = Reply(text(*words))
    peer = await connected(service, buffer=SMALL)
    await narrow(service, peer)
    reader, writer = await asyncio.open_connection(sock=peer, limit=4096)
    writer.write(POST.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    await fake.request()
    await until(lambda: not service.relay.running, "the generation to end")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    raw = await reader.read(-1)
    writer.close()

    head, _, chunked = raw.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    *texts, done = events(unchunked(chunked))
    assert "".join(event["data"] for event in texts) == "".join(words)
    assert len(texts) < len(words)
    assert done == {"event": "done", "data": "[DONE]"}


@pytest.mark.usefixtures("only_fast")
async def test_a_pipelined_request_hides_no_client_that_goes_away(service, fake):
    fake.default = Reply(head_after=[Hang()])
    _, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = json.dumps({"messages": HELLO}).encode()
    head = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + head + body)
    await fake.request()
    writer.close()

    await fake.requests[0].closed.wait()
    assert len(fake.requests) == 1


async def test_a_large_request_hides_no_client_that_goes_away(service, fake):
    fake.default = Reply(head_after=[Hang()])
    _, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    await until(lambda: service.connections.open, "the server to wait for the body")
    writer.write(body)
    await fake.request()
    writer.close()

    await fake.requests[0].closed.wait()


@pytest.mark.usefixtures("only_fast")
async def test_a_pipelined_request_is_not_answered_and_the_connection_closes(service, fake):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = json.dumps({"messages": HELLO}).encode()
    head = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    raw = await reader.read(-1)
    writer.close()

    assert raw.count(b"HTTP/1.1 200 OK") == 1
    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_hanging_upstreams_do_not_hold_up_others(service, fake):
    fake.reply([A, Hang()])
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO}) as response,
    ):
        assert response.status_code == 200
        assert (await service.post()).status_code == 200
