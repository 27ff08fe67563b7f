"""The Python client over a network that breaks, falls silent, or leads nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import ssl
import sys
import time

import pytest
from conftest import HELLO
from dropping import DroppingProxy
from processes import program
from scripted import done, scripted, start, tell

from ws_chat.client import (
    AuthenticationError,
    ClientError,
    ConnectionLostError,
    HistoryGoneError,
    InvalidRequestError,
    ServerError,
    UntrustedServerError,
    connect,
)
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

LONG = [f"{number} " for number in range(1500)]
NOWHERE = "ws://127.0.0.1:1"


@contextlib.asynccontextmanager
async def breaking(service, budget):
    proxy = DroppingProxy(int(service.url.rsplit(":", 1)[1]), budget)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def test_an_answer_is_whole_whatever_the_network_does(service, fake):
    fake.default = Reply([b"".join(text(*LONG[at : at + 50])[1:51]) for at in range(0, 1500, 50)] + text()[1:])
    chance = random.Random(1)
    async with (
        breaking(service, lambda: int(chance.expovariate(1 / 6000)) + 250) as proxy,
        connect(proxy.url) as chat,
    ):
        replies = [chat.ask(HELLO) for _ in range(10)]
        seen = await asyncio.gather(*(_all(reply) for reply in replies))

    assert seen == ["".join(LONG)] * 10
    assert {(reply.status, reply.seq) for reply in replies} == {("completed", 1501)}
    assert proxy.drops > 5
    assert len(fake.requests) == 10


async def _all(reply) -> str:
    seen, last = [], 0
    async for frame in reply:
        assert frame["seq"] > last
        last = frame["seq"]
        seen.append(frame["content"])
    assert "".join(seen) == reply.text
    return reply.text


async def test_what_was_never_acknowledged_is_sent_again(service, fake):
    budgets = iter([200, None])  # the first breaks in the handshake or soon after it
    async with breaking(service, lambda: next(budgets, None)) as proxy, connect(proxy.url) as chat:
        reply = await chat.ask(HELLO).end()

    assert reply.text == "Hello"
    assert len(fake.requests) == 1


async def test_a_server_that_stays_away_is_given_up(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with breaking(service, lambda: None) as proxy, connect(proxy.url, patience=0.2) as chat:
        reply, other = chat.ask(HELLO), chat.ask(HELLO)
        await anext(aiter(reply))
        await proxy.stop()
        began = time.monotonic()
        for lost in (reply, other):
            with pytest.raises(ConnectionLostError):
                await lost
        assert time.monotonic() - began < 2
        assert reply.text == "a"


@pytest.mark.parametrize("url", [NOWHERE, "ws://no-such-host.invalid", "wss://127.0.0.1:1"])
async def test_no_server_at_all(url):
    with pytest.raises(ConnectionLostError, match=r"cannot be reached") as lost:
        await connect(url, patience=0.2).__aenter__()
    assert lost.value.retryable
    assert isinstance(lost.value, ClientError)
    chat = connect(url, patience=0.2)
    with pytest.raises(ConnectionLostError):
        await chat.ask(HELLO)
    await chat.close()


async def test_opening_is_tried_once():
    chat = connect(NOWHERE, patience=3600)
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionLostError):
            await chat.open()
    await chat.close()


async def test_a_server_that_comes_late_is_waited_for(service):
    proxy = DroppingProxy(int(service.url.rsplit(":", 1)[1]), lambda: None)
    await proxy.start()
    port = int(proxy.url.rsplit(":", 1)[1])
    await proxy.stop()
    late = DroppingProxy(int(service.url.rsplit(":", 1)[1]), lambda: None)
    opening = asyncio.create_task(connect(f"127.0.0.1:{port}").__aenter__())
    await asyncio.sleep(0.3)
    assert not opening.done()
    late._server = await asyncio.start_server(late._serve, "127.0.0.1", port)
    async with await opening as chat:
        assert (await chat.ask(HELLO)).text == "Hello"
    await late.stop()


async def test_what_speaks_no_websocket_is_given_up():
    async def serve(_, writer):
        writer.write(b"220 mail\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(ConnectionLostError):
            await connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", patience=0.2).__aenter__()


@pytest.mark.parametrize("given", ["ftp://a", "ws://", "ws://a:b", "ws://a b", "ws://[::1", "http://user@host", ""])
def test_what_is_no_url_is_told_at_once(given):
    with pytest.raises(ValueError, match=r"\w"):
        connect(given)


@pytest.mark.parametrize("key", ["a b", "a\r\nX: y", "ключ"])
def test_what_is_no_key_is_told_at_once(key):
    with pytest.raises(ValueError, match="ASCII"):
        connect(NOWHERE, api_key=key)


def test_a_password_in_the_url_is_not_told():
    chat = connect("wss://user:secret@host:99/path?token=secret")
    assert str(chat._address) == "wss://host:99/path"
    for url in ("ftp://u:secret@h/", "ws://u:a/secret@h", "u:secret@h:many", "ws://h /?token=secret"):
        with pytest.raises(ValueError, match="is no URL") as raised:
            connect(url)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (
            401,
            '{"error":{"type":"authentication_error","code":"unauthorized","message":"no"}}',
            AuthenticationError,
            "un",
        ),
        (404, "nothing here", InvalidRequestError, "refused"),
        (418, '{"error":"tea"}', InvalidRequestError, "refused"),
        (501, '{"error":{"code":7,"message":"?"}}', ServerError, "refused"),
    ],
)
async def test_a_refusal_for_good_is_told_at_once(status, body, expected, code):
    seen = []

    async def refuse(connection, request):
        seen.append(request.headers.get("Authorization"))
        return connection.respond(status, body)

    async with scripted(lambda _: None, process_request=refuse) as url:
        chat = connect(url, api_key="k")
        with pytest.raises(expected, match=code):
            await asyncio.wait_for(chat.__aenter__(), 5)
        await chat.close()
    assert seen == ["Bearer k"]


async def test_a_refusal_for_now_is_waited_out():
    seen = []

    async def refuse(connection, _):
        seen.append(time.monotonic())
        if len(seen) == 1:
            response = connection.respond(503, "")
            response.headers["Retry-After"] = "1"
            return response
        return connection.respond(429, "") if len(seen) == 2 else None

    async def answer(socket):
        await socket.recv()
        await tell(socket, "r1", start(), done(1))
        await socket.wait_closed()

    async with scripted(answer, process_request=refuse) as url, connect(url) as chat:
        assert (await chat.ask(HELLO, request_id="r1")).status == "completed"
    assert len(seen) == 3
    assert seen[1] - seen[0] >= 1


async def test_a_refusal_that_outlasts_patience_is_told(serve):
    full = await serve(max_connections=1)
    async with connect(full.url), asyncio.timeout(0.4):  # not waited for in vain
        with pytest.raises(ServerError) as overloaded:  # with Retry-After: 1
            await connect(full.url, patience=0.5).__aenter__()
        assert (overloaded.value.code, overloaded.value.retry_after) == ("overloaded", 1)


async def test_a_certificate_that_is_not_trusted_is_told_at_once(monkeypatch):
    async def untrusted(*_, **__):
        raise ssl.SSLCertVerificationError("self-signed certificate")

    monkeypatch.setattr("ws_chat.client.network.connect", untrusted)
    with pytest.raises(UntrustedServerError, match="self-signed"):
        await asyncio.wait_for(connect("wss://127.0.0.1").__aenter__(), 5)


async def test_those_that_wait_for_a_connection_wait_no_longer_than_the_first():
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        chat = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", patience=0.2)
        began = time.monotonic()
        results = await asyncio.gather(*(chat.ask("hi").end() for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLostError] * 5
        assert time.monotonic() - began < 3
        await chat.close()


@contextlib.asynccontextmanager
async def demo(port: int = 0):
    command = (sys.executable, "-m", "ws_chat", "serve", "--port", str(port))
    async with program(*command, WS_CHAT_UPSTREAM="demo") as server:
        yield server, await server.port()


async def test_a_silent_network_is_found_within_patience():
    async with demo() as (server, port), connect(f"127.0.0.1:{port}", patience=3) as chat:
        reply = chat.ask("hi", model="demo-slow")
        await anext(aiter(reply))
        large = None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            large = chat.ask("x" * 30_000_000)  # which the network does not take
            with pytest.raises(ConnectionLostError):
                await reply
            assert 2 < time.monotonic() - began < 5
            with pytest.raises(ConnectionLostError):
                await large
            assert time.monotonic() - began < 6
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


async def test_a_silence_that_ends_in_time_loses_nothing():
    async with demo() as (server, port), connect(f"127.0.0.1:{port}", patience=8) as chat:
        reply = chat.ask("hi", model="demo")
        await anext(aiter(reply))
        os.kill(server.process.pid, signal.SIGSTOP)
        while not chat._link.lost:
            await asyncio.sleep(0.05)
        os.kill(server.process.pid, signal.SIGCONT)
        assert (await reply).status == "completed"


async def test_a_server_that_was_killed_has_lost_its_answers():
    async with contextlib.AsyncExitStack() as stack:
        server, port = await stack.enter_async_context(demo())
        chat = await stack.enter_async_context(connect(f"127.0.0.1:{port}", patience=20))
        reply = chat.ask("hi", model="demo-slow")
        await anext(aiter(reply))
        server.process.kill()
        await server.process.wait()
        await stack.enter_async_context(demo(port))
        with pytest.raises(HistoryGoneError):
            await reply
        assert (await chat.ask("hi", model="demo-fast")).status == "completed"
