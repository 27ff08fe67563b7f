"""The Python client over a network that breaks, falls silent, or leads nowhere."""

from __future__ import annotations

import asyncio
import random
import ssl

import pytest
from support.dropping import dropping, port_of
from support.patience import FOREVER, Clock, recorded_pauses
from support.scripted import done, scripted, send_frames, start
from support.service import HELLO
from support.waiting import until

from ws_chat.client import (
    AuthenticationError,
    ClientError,
    ConnectionLostError,
    HistoryGoneError,
    InvalidRequestError,
    ServerError,
    UntrustedServerError,
    connect,
    network,
)
from ws_chat.client.backoff import Backoff
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

LONG = [f"{number} " for number in range(1500)]
NOWHERE = "ws://127.0.0.1:1"


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def pauses(monkeypatch):
    return recorded_pauses(monkeypatch)


async def test_an_answer_is_whole_whatever_the_network_does(service, fake):
    fake.default = Reply([b"".join(text(*LONG[at : at + 50])[1:51]) for at in range(0, 1500, 50)] + text()[1:])
    chance = random.Random(1)
    async with (
        dropping(service.url, lambda: int(chance.expovariate(1 / 6000)) + 250) as proxy,
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
    async with dropping(service.url, lambda: next(budgets, None)) as proxy, connect(proxy.url) as chat:
        reply = await chat.ask(HELLO).end()

    assert reply.text == "Hello"
    assert len(fake.requests) == 1


async def test_a_server_that_stays_away_is_given_up(service, fake, clock, pauses):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with dropping(service.url) as proxy, connect(proxy.url, patience=10) as chat:
        replies = [chat.ask(HELLO), chat.ask(HELLO)]
        for reply in replies:
            await anext(aiter(reply))
        clock.now = 7
        await proxy.pull()
        await until(lambda: len(pauses) > 2, "attempts to connect again")
        clock.now = 16.9
        seen = len(pauses)
        await until(lambda: len(pauses) > seen + 1, "the last attempts")
        assert [reply.status for reply in replies] == ["running", "running"]
        clock.now = 17
        for reply in replies:
            with pytest.raises(ConnectionLostError, match="cannot be reached"):
                await reply
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


async def test_opening_is_tried_once(pauses):
    chat = connect(NOWHERE, patience=3600)
    with pytest.raises(ConnectionLostError):
        await chat.open()
    await chat.close()
    assert pauses == []


@pytest.mark.parametrize("heard", [True, False])
async def test_waiting_for_a_server_is_logged_or_reported(heard, clock, pauses, caplog):
    reported = []
    chat = connect(NOWHERE, patience=10, on_retry=(lambda *report: reported.append(report)) if heard else None)
    opening = asyncio.create_task(chat.__aenter__())
    await until(lambda: len(pauses) > 1, "the first pause to be over")
    clock.now = 10
    with pytest.raises(ConnectionLostError):
        await opening
    warnings = [record.getMessage() for record in caplog.records if record.name == "ws_chat.client"]
    assert bool(reported) == heard
    assert all("cannot be reached" in warning and "trying again in" in warning for warning in warnings)
    assert bool(warnings) != heard


async def test_a_server_that_comes_late_is_waited_for(service, pauses):
    async with dropping(service.url) as proxy:
        await proxy.pull()
        opening = asyncio.create_task(connect(f"127.0.0.1:{proxy.port}").__aenter__())
        await until(lambda: len(pauses) > 2, "attempts to connect")
        assert not opening.done()
        await proxy.plug()
        async with await opening as chat:
            assert (await chat.ask(HELLO)).text == "Hello"


async def test_what_speaks_no_websocket_is_given_up():
    async def serve(_, writer):
        writer.write(b"220 mail\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(ConnectionLostError):
            await connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", patience=0.2).__aenter__()


@pytest.mark.parametrize("given", ["ftp://a", "ws://", "ws://a:b", "ws://a b", "ws://[::1", "http://user@host", ""])
def test_an_invalid_url_is_refused_at_the_call(given):
    with pytest.raises(ValueError, match=r"\w"):
        connect(given)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://a", "wss://a/v1/chat/ws"),
        ("a:8000/", "ws://a:8000/v1/chat/ws"),
        ("http://a/chat", "ws://a/chat/v1/chat/ws"),
        ("wss://a/chat/?k=1", "wss://a/chat/v1/chat/ws?k=1"),
        ("http://a/v1", "ws://a/v1/chat/ws"),
        ("ws://a/chat/v1/chat/ws", "ws://a/chat/v1/chat/ws"),
        ("ws://a/behind/a/proxy/ws", "ws://a/behind/a/proxy/ws"),
    ],
)
def test_a_url_may_be_that_of_a_mount_or_of_the_socket(given, url):
    assert connect(given)._address.url == url


@pytest.mark.parametrize("key", ["a b", "a\r\nX: y", "ключ"])
def test_an_invalid_key_is_refused_at_the_call(key):
    with pytest.raises(ValueError, match="ASCII"):
        connect(NOWHERE, api_key=key)


def test_a_password_in_the_url_is_not_in_an_error():
    chat = connect("wss://user:secret@host:99/path?token=secret")
    assert str(chat._address) == "wss://host:99/path/v1/chat/ws"
    for url in ("ftp://u:secret@h/", "ws://u:a/secret@h", "u:secret@h:many", "ws://h /?token=secret"):
        with pytest.raises(ValueError, match="is not the URL") as raised:
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
        (404, "nothing here", InvalidRequestError, r"refused: ws://127.0.0.1:\d+/v1/chat/ws answered with status 404"),
        (418, '{"error":"tea"}', InvalidRequestError, "refused"),
        (501, '{"error":{"code":7,"message":"?"}}', ServerError, "refused"),
    ],
)
async def test_a_final_refusal_is_raised_at_once(status, body, expected, code):
    seen = []

    async def refuse(connection, request):
        seen.append(request.headers.get("Authorization"))
        return connection.respond(status, body)

    async with scripted(lambda _: None, process_request=refuse) as url:
        chat = connect(url, api_key="k")
        with pytest.raises(expected, match=code):
            await chat.__aenter__()
        await chat.close()
    assert seen == ["Bearer k"]


async def test_a_temporary_refusal_is_waited_out(pauses):
    async def refuse(connection, _):
        if len(pauses) == 0:
            response = connection.respond(503, "")
            response.headers["Retry-After"] = "7"
            return response
        return connection.respond(429, "") if len(pauses) == 1 else None

    async def answer(socket):
        await socket.recv()
        await send_frames(socket, "r1", start(), done(1))
        await socket.wait_closed()

    async with scripted(answer, process_request=refuse) as url, connect(url) as chat:
        assert (await chat.ask(HELLO, request_id="r1")).status == "completed"
    first, second = pauses
    assert first == 7, "as long as the server says"
    assert second < 1, "of its own choice"


async def test_a_refusal_longer_than_patience_is_raised(serve, clock, pauses):
    full = await serve(max_connections=1)
    async with connect(full.url):
        with pytest.raises(ServerError) as overloaded:  # with Retry-After: 1
            await connect(full.url, patience=0.5).__aenter__()
        assert (overloaded.value.code, overloaded.value.retry_after) == ("overloaded", 1)
    assert pauses == [], "it was not waited for in vain"


async def test_an_untrusted_certificate_is_raised_at_once(monkeypatch):
    async def untrusted(*_, **__):
        raise ssl.SSLCertVerificationError("self-signed certificate")

    monkeypatch.setattr("ws_chat.client.network.connect", untrusted)
    with pytest.raises(UntrustedServerError, match="self-signed"):
        await connect("wss://127.0.0.1").__aenter__()


async def test_those_that_wait_for_a_connection_wait_no_longer_than_the_first(clock):
    attempts = 0

    async def slow(reader, writer):
        nonlocal attempts
        attempts += 1
        await reader.readuntil(b"\r\n\r\n")
        clock.now += 11
        writer.close()

    async with await asyncio.start_server(slow, "127.0.0.1", 0) as server:
        chat = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", patience=10)
        results = await asyncio.gather(*(chat.ask("hi").end() for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLostError] * 5
        assert attempts == 1
        await chat.close()


async def test_a_silent_network_is_found_within_patience(service, fake, clock, pauses):
    """Counted from the last sign of life, not from when the silence is noticed."""
    fake.default = Reply([*text("the last")[:2], Hang()])
    async with dropping(service.url) as proxy, connect(proxy.url, patience=10) as chat:
        proxy.last_words = b"the last"
        reply = chat.ask(HELLO)
        await anext(aiter(reply))
        clock.now = 9
        clock.hurry_handshakes()
        clock.look_for_life()
        large = chat.ask("x" * 20_000_000)  # which the network does not take
        await until(lambda: len(pauses) > 1, "attempts to connect again")
        assert (reply.status, large.status) == ("running", "running")
        clock.now = 10
        with pytest.raises(ConnectionLostError):
            await reply
        seen = len(pauses)
        await until(lambda: len(pauses) > seen, "more attempts for the other request")
        assert large.status == "running"
        clock.now = 19
        with pytest.raises(ConnectionLostError):
            await large


async def test_a_request_is_given_up_in_time_while_another_goes_on_connecting(service, clock, pauses):
    async with dropping(service.url) as proxy, connect(proxy.url, patience=10) as chat:
        await proxy.stop()
        await until(lambda: chat._connection.lost, "the connection to be lost")
        early = Backoff(10)
        clock.now = 5
        late = asyncio.create_task(chat._connect(Backoff(10)))
        await until(lambda: pauses, "an attempt to connect")
        waiting = asyncio.create_task(chat._connect(early))
        clock.now = 10
        with pytest.raises(ConnectionLostError):
            await waiting
        assert not late.done()
        clock.now = 15
        with pytest.raises(ConnectionLostError):
            await late


async def test_a_silence_that_ends_in_time_loses_nothing(service, fake, clock, pauses):
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with dropping(service.url) as proxy, connect(proxy.url) as chat:
        reply = chat.ask(HELLO)
        await anext(aiter(reply))
        link = chat._connection
        proxy.fall_silent()
        clock.look_for_life()
        more.set()
        await until(lambda: link.lost, "the silence to be noticed")
        proxy.go_on()
        assert (await reply).text == "ab"
    assert len(fake.requests) == 1


async def test_silence_is_noticed_well_within_patience(service, monkeypatch):
    monkeypatch.setattr("ws_chat.client.network.HANDSHAKE_TIMEOUT", FOREVER)
    for patience, heartbeat in ((0, 0.5), (1, 0.5), (8, 2), (60, 15), (3600, 15)):
        async with connect(service.url, patience=patience) as chat:
            assert chat._connection._heartbeat == heartbeat, "half of the time after which it counts as lost"


async def test_a_server_that_was_killed_has_lost_its_answers(serve, fake):
    fake.replies = [Reply([*text("a")[:2], Hang()])]
    first, second = await serve(), await serve()
    async with dropping(first.url) as proxy, connect(proxy.url) as chat:
        reply = chat.ask(HELLO)
        await anext(aiter(reply))
        await proxy.pull()
        proxy.lead_to(port_of(second.url))
        await proxy.plug()
        with pytest.raises(HistoryGoneError):
            await reply
        assert (await chat.ask(HELLO)).status == "completed"


async def test_a_name_with_two_addresses_is_refused_in_one_word(monkeypatch):
    each = ("[Errno 111] Connect call failed ('::1', 9, 0, 0)", "[Errno 111] Connect call failed ('127.0.0.1', 9)")

    async def refused(*_, **__):
        raise OSError(f"Multiple exceptions: {', '.join(each)}")  # as asyncio does

    monkeypatch.setattr(network, "connect", refused)
    with pytest.raises(ConnectionLostError, match=r"cannot be reached: Connection refused$"):
        await network.Address("ws://name", None).open(1)
