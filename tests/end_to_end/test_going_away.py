"""A cancel or a lost client closes the upstream's connection, at any moment of a generation's life."""

from __future__ import annotations

import asyncio
import json
import socket as sockets

import httpx
import pytest
from support.service import HELLO, both_paths, events
from support.waiting import until

from ws_chat.testing import DONE, Hang, Reply, Reset, Wait, chunk, sse, text

pytestmark = [pytest.mark.anyio, both_paths]

A = sse(chunk({"content": "a"}))
AT = {
    "before the upstream's head": Reply(head_after=[Hang()]),
    "after its head": Reply([Hang()]),
    "in mid-event": Reply([A[:30], Hang()]),
    "in mid-stream": Reply([A, Hang()]),
    "after the finish_reason": Reply([A, sse(chunk({}, "stop")), Hang()]),
}


async def closed(fake, number: int = 1) -> None:
    await (await fake.request(number)).closed.wait()


@pytest.mark.parametrize("moment", AT)
async def test_cancel_closes_the_upstream_and_then_says_done(moment, service, fake):
    fake.default = AT[moment]
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        start = await socket.receive()
        await fake.request()
        said = [await socket.receive()] if moment in ("in mid-stream", "after the finish_reason") else []
        await socket.send({"type": "cancel", "id": start["id"]})
        done = await socket.receive()
        await closed(fake)
        assert (await socket.ask({"type": "ping"})) == {"type": "pong"}

    assert done == {
        "type": "done",
        "id": start["id"],
        "seq": len(said) + 1,
        "status": "cancelled",
        "finish_reason": None if moment != "after the finish_reason" else done["finish_reason"],
        "model": done["model"],
        "usage": None,
        "timing": done["timing"],
    }
    assert (done["timing"]["ttft_ms"] is None) == (not said)


async def test_cancel_sent_right_after_the_chat(service, fake):
    fake.default = Reply(head_after=[Hang()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await socket.send({"type": "cancel"})
        start, done = await socket.until_end()

    assert (start["type"], done["status"]) == ("start", "cancelled")
    assert all(request.closed.is_set() for request in fake.requests)


async def test_cancel_while_the_sdk_waits_to_try_again(service, fake):
    fake.refuse(429, "slow down", Retry_After="60")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await socket.receive()
        await fake.request()
        done = await socket.ask({"type": "cancel"})

    assert done["status"] == "cancelled"
    assert len(fake.requests) == 1


async def test_cancel_without_id_cancels_the_only_one_running(service, fake):
    fake.default = Reply([A, Hang()])
    async with service.socket() as socket:
        none = await socket.ask({"type": "cancel"})
        await socket.send({"messages": HELLO})
        first = (await socket.receive())["id"]
        await socket.receive()
        await socket.send({"messages": HELLO})
        second = (await socket.receive())["id"]
        await socket.receive()
        two = await socket.ask({"type": "cancel"})
        assert (await socket.ask({"type": "cancel", "id": second}))["status"] == "cancelled"
        last = await socket.ask({"type": "cancel"})

    for refused in (none, two):
        assert refused["error"]["code"] == "invalid_request"
        assert refused["error"]["param"] == "id"
        assert "seq" not in refused
    assert (last["id"], last["status"]) == (first, "cancelled")


async def test_cancel_of_what_has_ended_does_nothing_and_of_the_unknown_is_not_found(service, fake):
    async with service.socket() as socket, service.socket() as other:
        *_, done = await socket.chat()
        await socket.send({"type": "cancel", "id": done["id"]})
        unknown = await socket.ask({"type": "cancel", "id": "nobody"})
        foreign = await other.ask({"type": "cancel", "id": done["id"]})

    assert (unknown["type"], unknown["id"], unknown["error"]["code"]) == ("error", "nobody", "not_found")
    assert "seq" not in unknown
    assert foreign["error"] == unknown["error"]


async def test_one_cancel_leaves_the_other_generations_alone(service, fake):
    gate = asyncio.Event()
    fake.default = Reply([A, Wait(gate), *text("b")])
    async with service.socket() as socket:
        ids = []
        for _ in range(5):
            await socket.send({"messages": HELLO})
            ids.append((await socket.receive())["id"])
            await socket.receive()
        await socket.ask({"type": "cancel", "id": ids[2]})
        gate.set()
        ends = {}
        for _ in range(4):
            *_, frame = await socket.until_end()
            ends[frame["id"]] = frame["status"]

    assert ends == dict.fromkeys([*ids[:2], *ids[3:]], "completed")


def abort(transport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    transport.abort()


@pytest.mark.parametrize("moment", AT)
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_lost_socket_closes_all_of_its_upstream_requests(how, moment, service, fake):
    fake.default = AT[moment]
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        await socket.send({"messages": HELLO})
        await fake.request(2)
        if how == "close":
            await socket.connection.close()
        else:
            abort(socket.connection.transport)
        await closed(fake, 1)
        await closed(fake, 2)


@pytest.mark.parametrize("moment", AT)
@pytest.mark.parametrize("query", ["", "?format=frames"])
async def test_a_lost_request_closes_its_upstream_request(query, moment, service, fake):
    fake.default = AT[moment]
    _, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    body = json.dumps({"messages": HELLO}).encode()
    writer.write(
        b"POST /v1/chat/stream%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        % (query.encode(), len(body), body)
    )
    await fake.request()
    writer.transport.abort()

    await closed(fake)


async def test_nothing_is_left_when_all_have_gone(service, fake):
    fake.default = Reply([A, Hang()])
    before = len(asyncio.all_tasks())
    relay = service.relay
    async with service.socket() as socket:
        for _ in range(10):
            await socket.send({"messages": HELLO})
        await fake.request(10)
        assert relay.running == 10
        abort(socket.connection.transport)
        for number in range(1, 11):
            await closed(fake, number)
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO}),
    ):
        assert relay.running == 1
    await closed(fake, 11)
    fake.default = Reply([A, Reset()])
    await service.post()
    fake.default = Reply([DONE])
    await service.post()

    await until(lambda: not relay.running and len(asyncio.all_tasks()) <= before, "all tasks to end")
    assert relay._store._logs == {}
    assert service.connections.open == 0


async def test_many_waiters_for_the_end_cancel_once(service, fake):
    fake.default = Reply(head_after=[Hang()])
    async with service.socket() as socket:
        for _ in range(16):
            await socket.send({"messages": HELLO})
        await fake.request(16)
        producers = [producing.task for producing in service.relay._runner._running.values()]
        await asyncio.gather(*[service.relay.stop() for _ in range(100)])
        assert {producer.cancelling() for producer in producers} == {1}
        frames = [await socket.receive() for _ in range(32)]
    assert [frame["error"]["code"] for frame in frames if frame["type"] == "error"] == ["draining"] * 16
    assert service.relay.running == 0


async def test_shutdown_ends_running_generations(serve, fake):
    fake.default = Reply([A, Hang()])
    service = await serve()
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO}) as response,
    ):
        await service.relay.close()
        body = b"".join([part async for part in response.aiter_raw()])

    last = events(body)[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["error"]["code"] == "draining"
    refused = await service.post()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"
