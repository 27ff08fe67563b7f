from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from protocol.test_frames import BAD_FRAMES, BAD_JSON
from support.peers import all_closed, roomy, slow_socket
from support.service import HELLO, both_paths, joined
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ws_chat.server import sockets as transport
from ws_chat.server.chat.sender import MAX_REPLIES
from ws_chat.testing import Hang, Reply, Wait, chunk, sse, text

pytestmark = [pytest.mark.anyio, both_paths]

A = sse(chunk({"content": "a"}))


async def test_relays_an_answer_frame_by_frame(service, fake):
    async with service.socket() as socket:
        start, *tokens, done = await socket.chat()

    assert start == {"type": "start", "id": start["id"], "seq": 0, "model": "gpt-4o-mini"}
    assert [(t["seq"], t["content"]) for t in tokens] == [(1, "Hel"), (2, "lo")]
    assert all(list(token) == ["type", "id", "seq", "content"] for token in tokens)
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


async def test_the_request_reaches_the_upstream_as_it_is(service, fake):
    request = {
        "model": "m-1",
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}], "x": None}],
        "temperature": 0.25,
        "seed": 123456789012345678901234567890,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_object"},
        "extra_headers": {"Authorization": "Bearer stolen"},
        "extra_query": {"a": 1},
        "extra_body": {"b": 2},
        "timeout": 0.0001,
        "stop": None,
    }
    async with service.socket() as socket:
        start, *_ = await socket.chat(type="chat", stream=True, **request)

    (sent,) = fake.requests
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == "Bearer sk-operator-key"
    assert sent.headers["content-type"] == "application/json"
    assert sent.body == request | {"stream": True, "stream_options": {"include_usage": True}}
    assert start["model"] == "m-1"


@pytest.mark.parametrize(
    "frame",
    [HELLO, {"messages": HELLO}, {"type": "chat", "messages": HELLO}, json.dumps({"messages": HELLO}).encode()],
)
async def test_a_chat_in_every_form(frame, service, fake):
    async with service.socket() as socket:
        await socket.send(frame)
        frames = await socket.until_end()

    assert joined(frames) == "Hello"
    assert fake.requests[0].body["messages"] == HELLO
    assert fake.requests[0].body["model"] == "gpt-4o-mini"


async def test_start_comes_before_the_upstream_answers(service, fake):
    fake.default = Reply(head_after=[Hang()])
    async with service.socket() as socket:
        assert (await socket.ask({"messages": HELLO}))["type"] == "start"


async def test_each_delta_is_sent_when_it_arrives(service, fake):
    gates = [asyncio.Event() for _ in range(5)]
    steps = [step for gate in gates for step in (Wait(gate), A)]
    fake.default = Reply([*steps, *text()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await socket.receive()
        for seq, gate in enumerate(gates, 1):
            gate.set()
            assert (await socket.receive())["seq"] == seq


async def test_many_generations_interleave_on_one_socket(service, fake):
    fake.default = Reply(text(*"abcdefgh"))
    async with service.socket() as socket:
        for _ in range(16):
            await socket.send({"messages": HELLO})
        frames: dict[str, list] = {}
        while sum(f[-1]["type"] == "done" for f in frames.values()) < 16:
            frame = await socket.receive()
            frames.setdefault(frame["id"], []).append(frame)

    for own in frames.values():
        assert [frame["type"] for frame in own].count("done") == 1
        assert joined(own) == "abcdefgh"


async def test_a_socket_has_so_many_generations_and_no_more(serve, fake):
    fake.default = Reply([A, Hang()])
    service = await serve(max_generations_per_connection=2)
    async with service.socket() as socket, service.socket() as other:
        await socket.ask({"messages": HELLO})
        await socket.receive()
        await socket.ask({"messages": HELLO})
        await socket.receive()
        refused = await socket.ask({"messages": HELLO})
        assert (await other.ask({"messages": HELLO}))["type"] == "start"

    assert refused["error"]["code"] == "too_many_generations"
    assert refused["error"]["status"] == 429
    assert refused["error"]["type"] == "rate_limit_error"
    assert refused["error"]["retryable"] is True
    assert "seq" not in refused


async def test_a_process_has_so_many_generations_and_no_more(serve, fake):
    fake.default = Reply([A, Hang()])
    service = await serve(max_generations=1)
    async with service.socket() as socket:
        await socket.ask({"messages": HELLO})
        await socket.receive()
        refused = await socket.ask({"messages": HELLO})
        over_sse = await service.post()
        await socket.ask({"type": "cancel"})
        assert (await socket.ask({"messages": HELLO}))["type"] == "start"

    assert refused["error"]["code"] == "overloaded"
    assert (over_sse.status_code, over_sse.headers["retry-after"]) == (503, "1")
    assert over_sse.json()["error"] == refused["error"]


async def test_a_process_has_so_many_connections_and_no_more(serve, fake):
    service = await serve(max_connections=1)
    async with service.socket() as socket:
        with pytest.raises(InvalidStatus) as caught:
            async with service.socket():
                pass
        over_sse = await service.post()
        assert joined(await socket.chat()) == "Hello"
    await all_closed(service)
    assert (await service.post()).status_code == 200

    response = caught.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(response.body)["error"]["code"] == "overloaded"
    assert over_sse.status_code == 503


async def test_models_that_are_not_allowed_are_refused(serve, fake):
    service = await serve(models=("gpt-4*", "o?"))
    async with service.socket() as socket:
        refused = await socket.ask({"messages": HELLO, "model": "davinci"})
        for model in ("gpt-4o", "o3"):
            assert (await socket.chat(model=model))[-1]["type"] == "done"
        assert (await socket.chat())[0]["model"] == "gpt-4o-mini"

    assert refused["error"]["code"] == "model_not_allowed"
    assert (refused["error"]["status"], refused["error"]["param"]) == (403, "model")
    assert (await service.post({"messages": HELLO, "model": "davinci"})).status_code == 403


async def test_no_number_of_answers_on_one_socket_ends_one_that_runs(serve, fake, monkeypatch):
    monkeypatch.setattr(transport, "REMEMBERED", 4)
    count = 10
    service = await serve(max_generations_per_connection=count)
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b")[1:]])
    async with service.socket() as socket:
        for _ in range(count):
            await socket.send({"messages": HELLO})
        await fake.request(count)
        go.set()
        ends = [(await socket.until_end())[-1]["status"] for _ in range(count)]

    assert ends == ["completed"] * count


async def test_no_frame_closes_the_socket_or_disturbs_a_generation(service, fake, caplog):
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    fake.default = Reply([A, Wait(gate), *text("b")])
    frames = list(BAD_JSON.values()) + [data for data, _ in BAD_FRAMES.values()]
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        start = await socket.receive()
        await socket.receive()
        for frame in frames:
            if isinstance(frame, str) and not frame.isprintable() and "\ud800" in frame:
                continue  # no client can put this into a text frame
            refused = await socket.ask(frame)
            assert refused["type"] == "error"
            assert refused["error"]["code"] in ("invalid_json", "invalid_request")
            assert "seq" not in refused
        assert await socket.ask({"type": "ping"}) == {"type": "pong"}
        gate.set()
        *tokens, done = await socket.until_end(start["id"])

    assert joined(tokens) == "b"
    assert done["status"] == "completed"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_asks_without_reading_is_slowed_down_and_loses_nothing(service, fake):
    count = 2000
    async with slow_socket(service) as socket:

        async def ask() -> None:
            for number in range(count):
                await socket.send({"type": "cancel", "id": f"r{number}", "padding": "x" * 1000})

        socket.connection.transport.pause_reading()
        asking = asyncio.create_task(ask())
        (connection,) = service.connections._open
        await until(lambda: len(connection.sender._replies) == MAX_REPLIES, "the server to read no further")
        await until(socket.connection.transport.get_write_buffer_size, "the client to be slowed down")
        assert not asking.done()
        socket.connection.transport.resume_reading()
        answers = [await socket.receive() for _ in range(count)]
        await asking
        assert joined(await socket.chat()) == "Hello"

    assert [answer["id"] for answer in answers] == [f"r{number}" for number in range(count)]


@pytest.mark.parametrize(("data", "code"), [("x" * 1001, 1009), (b"x" * 1001, 1009)])
async def test_a_frame_that_is_too_big_closes_the_socket(data, code, serve, fake):
    service = await serve(max_frame_bytes=1000)
    async with service.socket() as socket:
        assert await socket.ask('{"type":"ping"}' + " " * 985) == {"type": "pong"}
        await socket.send(data)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.receive()

    assert caught.value.rcvd.code == code


@pytest.mark.usefixtures("only_fast")
async def test_text_that_is_not_utf8_closes_the_socket(service, fake, caplog):
    async with service.socket() as socket:
        await socket.connection.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.receive()

    assert caught.value.rcvd.code == 1007
    assert caplog.records == []


@pytest.mark.usefixtures("only_fast")
async def test_a_socket_anywhere_else_is_404(service, caplog):
    with pytest.raises(InvalidStatus) as caught:
        async with connect(service.url.replace("http", "ws") + "/v1/chat", open_timeout=None):
            pass

    assert caught.value.response.status_code == 404
    assert json.loads(caught.value.response.body)["error"]["code"] == "not_found"
    assert caplog.records == []


@pytest.mark.parametrize("end", [b"\x88\x82\0\0\0\0\x03\xe8", b"\x81\x82\0\0\0\0\xff\xfe", b""])
async def test_a_reply_without_a_waiter_blocks_nothing(end, service, fake):
    """A question and the end of the connection in one segment: the answer has nowhere to go, and all must go."""
    fake.default = Reply([A, Hang()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await fake.request()
        ping = b"\x81\x8f\0\0\0\0" + b'{"type":"ping"}'
        socket.connection.transport.write(ping * 500 + end)
        if not end:
            socket.connection.transport.abort()
        await fake.requests[0].closed.wait()
        await all_closed(service)
        socket.connection.transport.abort()  # it has not read the pongs, and would not see the end


async def test_a_cancel_is_not_held_up_by_a_reply_that_waits(service, fake):
    """A reader with a backlog asks for a pong, and then cancels: the cancel counts at once, the pong comes soon."""
    words = ["x" * 10_000] * 400
    fake.default = Reply([*text(*words)[:-2], Hang()])
    async with slow_socket(service) as socket:
        await socket.send({"messages": HELLO})
        await socket.receive()
        socket.connection.transport.pause_reading()
        (log,) = service.relay._store._logs.values()
        await until(lambda: log.last == len(words), "the whole text to be in the log")
        await socket.send({"type": "ping"})
        await socket.send({"type": "cancel"})
        await fake.requests[0].closed.wait()
        roomy(socket)
        socket.connection.transport.resume_reading()
        frames = await socket.until_end()

    pong = [frame["type"] for frame in frames].index("pong")
    assert sum(len(frame.get("content", "")) for frame in frames[:pong]) < len("".join(words)) / 2
    assert joined(frames) == "".join(words)
    assert frames[-1]["status"] == "cancelled"


@pytest.mark.usefixtures("only_fast")
async def test_two_messages_that_are_not_utf8_close_once(service, caplog):
    async with service.socket() as socket:
        socket.connection.transport.write(b"\x81\x82\0\0\0\0\xff\xfe" * 2)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.receive()

    assert caught.value.rcvd.code == 1007
    assert caplog.records == []


@pytest.mark.usefixtures("only_fast")
async def test_pings_of_a_client_that_does_not_read_pile_up_nowhere(service, fake):
    async with slow_socket(service) as socket:
        transport = socket.connection.transport
        transport.pause_reading()
        ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
        transport.write(ping * 10_000)  # 1.3 MB, more than the buffers hold of pongs
        await socket.send({"messages": HELLO})
        await fake.request()  # the server has read all of them
        (protocol,) = service.server.server_state.connections
        assert protocol.transport.get_write_buffer_size() < 200_000
        transport.abort()


async def test_a_slow_reader_gets_the_same_text_in_fewer_frames_and_delays_no_other(service, fake):
    words = [f"{number:06} " * 1500 for number in range(200)]  # more than the buffers hold
    fake.default = Reply(text(*words))
    async with slow_socket(service) as slow, service.socket() as quick:
        await slow.send({"messages": HELLO})
        await slow.receive()
        slow.connection.transport.pause_reading()
        assert joined(await quick.chat()) == "".join(words)
        roomy(slow)
        slow.connection.transport.resume_reading()
        *tokens, done = await slow.until_end()

    assert joined(tokens) == "".join(words)
    assert len(tokens) < len(words)
    assert (done["status"], done["seq"]) == ("completed", len(words) + 1)


async def test_an_internal_error_is_sent_without_its_details(service, fake, caplog, monkeypatch):
    async def broken(*_: object) -> None:
        raise RuntimeError("sk-secret")

    monkeypatch.setattr(service.relay._upstream, "generate", broken)
    async with service.socket() as socket:
        _, failed = await socket.chat()
    over_sse = await service.post()

    assert failed["error"]["code"] == "internal_error"
    assert (over_sse.status_code, over_sse.json()["error"]) == (500, failed["error"])
    assert "sk-secret" not in failed["error"]["message"]
    assert "sk-secret" in caplog.text


async def test_an_error_in_the_transport_closes_the_socket_with_1011(service, fake, caplog, monkeypatch):
    async def broken(*_: object) -> None:
        raise RuntimeError("sk-secret")

    monkeypatch.setattr(service.relay, "start", broken)
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        with pytest.raises(ConnectionClosed) as caught:
            await socket.receive()
    over_sse = await service.post()

    assert caught.value.rcvd.code == 1011
    assert (over_sse.status_code, over_sse.json()["error"]["code"]) == (500, "internal_error")
    assert "sk-secret" in caplog.text
    assert "sk-secret" not in over_sse.text


async def test_a_request_without_an_upgrade_gets_a_hint(service):
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.get(service.url + "/v1/chat/ws")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert "Upgrade" in response.json()["error"]["message"]
