"""Our own HTTP/1.1 connection to an upstream, against servers that are no fake of ours: raw bytes on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import resource
import socket
import ssl

import httpx2
import pytest
from support.clock import advance, with_clock
from support.memory import bounded_memory
from support.processes import need, output
from support.raw import CHUNKED, OK, Raw
from support.waiting import until

from ws_chat.upstreams.http import body as body_module
from ws_chat.upstreams.http import connection as connection_module
from ws_chat.upstreams.http import transport as transport_module
from ws_chat.upstreams.http.transport import PUSHED, RESERVED_FILES, PushTransport, files_left

pytestmark = pytest.mark.anyio

LENGTH = OK + b"Content-Length: 2\r\n\r\nhi"


@pytest.fixture
async def raw():
    async with Raw() as server:
        yield server


@pytest.fixture
async def client():
    async with httpx2.AsyncClient(transport=PushTransport(), timeout=None) as client:
        yield client


async def pushed(client, url: str) -> bytes:
    """Read a body the way the upstream does."""
    request = client.build_request("GET", url)
    response = await client.send(request, stream=True)
    got = []
    await response.extensions[PUSHED].push(lambda read: got.append(read) or False)
    await response.aclose()
    return b"".join(got)


@pytest.mark.parametrize(
    ("script", "body"),
    [
        ([LENGTH], b"hi"),
        ([CHUNKED + b"2\r\nhi\r\n", b"4\r\n you\r\n0\r\n\r\n"], b"hi you"),
        ([CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: a\r\nX-Checksum: b\r\n\r\n"], b"hi"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", LENGTH], b"hi"),
        ([OK + b"\r\n", b"until ", b"the end", b""], b"until the end"),
        ([b"HTTP/1.0 200 OK\r\n\r\nold", b""], b"old"),
        ([OK + b"Content-Length: 0\r\n\r\n"], b""),
        ([OK[:9], OK[9:] + b"Content-Le", b"ngth: 2\r\n\r", b"\nh", b"i"], b"hi"),
    ],
)
async def test_a_body_arrives_whole_pushed_or_pulled(script, body, raw, client):
    raw.scripts = [list(script), list(script)]

    assert await pushed(client, raw.url) == body
    assert (await client.get(raw.url)).content == body
    assert raw.requests[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([b""], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 200", b""], httpx2.RemoteProtocolError),
        ([b"nonsense\r\n\r\n"], httpx2.RemoteProtocolError),
        ([CHUNKED + b"2\r\nhi\r\n", b""], httpx2.RemoteProtocolError),
        ([OK + b"Content-Length: 5\r\n\r\nhi", b""], httpx2.RemoteProtocolError),
        ([CHUNKED + b"no size\r\n"], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], httpx2.RemoteProtocolError),
        ([b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx"], httpx2.RemoteProtocolError),
    ],
)
async def test_failures_are_errors_of_httpx2(script, error, raw, client):
    raw.scripts = [list(script), list(script)]

    with pytest.raises(error):
        await pushed(client, raw.url)
    with pytest.raises(error):
        await client.get(raw.url)


async def test_connections_that_cannot_be_made(client, monkeypatch):
    with pytest.raises(httpx2.ConnectError):
        await client.get("http://127.0.0.1:9/")
    with pytest.raises(httpx2.ConnectError):
        await client.get("http://name.invalid/")


async def test_a_connection_is_used_again_after_a_whole_body_only(raw, client):
    raw.scripts = [[LENGTH], [LENGTH], [OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi"], [LENGTH]]
    for _ in range(3):
        await pushed(client, raw.url)
        for connection in client._transport._open:
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)  # a NAT does not drop it silently
    assert raw.connections == 1
    await pushed(client, raw.url)
    assert raw.connections == 2


@pytest.mark.parametrize("surplus", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", b"?", LENGTH * 200])
async def test_a_connection_with_more_than_one_response_is_not_used_again(surplus, raw, client):
    raw.scripts = [[LENGTH + surplus], [LENGTH]]

    assert [await pushed(client, raw.url) for _ in range(2)] == [b"hi", b"hi"]
    assert raw.connections == 2


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (OK + b"X-", b"x" * 10_000),
        (OK, b"X: y\r\n" * 1000),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 100),
        (CHUNKED + b"2\r\nhi\r\n0\r\n", b"X: y\r\n" * 1000),
        (CHUNKED + b"2;x", b"x" * 10_000),
    ],
    ids=["header", "headers", "interim responses", "trailers", "chunk extension"],
)
async def test_bytes_that_are_no_body_are_bounded(head, endless, raw, client):
    raw.scripts = [itertools.chain([head], itertools.repeat(endless))]

    with bounded_memory(4_000_000), pytest.raises(httpx2.RemoteProtocolError, match="more than 65536 bytes"):
        await pushed(client, raw.url)


async def test_a_flood_leaves_the_event_loop_to_others(raw, client, monkeypatch):
    monkeypatch.setattr(connection_module, "TURN_TIME", 0)
    size, floods = 500_000, 3
    raw.scripts = [[OK + b"Content-Length: %d\r\n\r\n" % size, b"wait", b"x" * size] for _ in range(floods)]
    loop = asyncio.get_running_loop()
    in_turn: list[int] = [0]
    got = [0] * floods

    def turn() -> None:
        in_turn.append(0)
        timer.append(loop.call_soon(turn))

    timer = [loop.call_soon(turn)]

    async def read(number: int) -> None:
        def sink(read: bytes) -> bool:
            if len(read) > connection_module.DIRECT:
                in_turn[-1] += len(read)
            got[number] += len(read)
            return False

        response = await client.send(client.build_request("GET", raw.url), stream=True)
        heads.append(number)
        await response.extensions[PUSHED].push(sink)
        await response.aclose()

    heads: list[int] = []
    reading = [asyncio.create_task(read(number)) for number in range(floods)]
    await until(lambda: len(heads) == floods, "the heads")
    raw.go.set()
    await asyncio.gather(*reading)
    timer[-1].cancel()

    assert got == [size] * floods
    assert max(in_turn) <= connection_module.SLICE
    assert not client._transport._turns._waiting


async def test_a_connection_that_was_given_up_is_replaced_at_once(raw, client):
    raw.scripts = [[LENGTH], [b""], [LENGTH]]
    await pushed(client, raw.url)

    assert await pushed(client, raw.url) == b"hi"
    assert raw.connections == 2
    assert len(raw.requests) == 3


async def test_a_connection_that_was_idle_for_long_is_not_used_again(raw, client, monkeypatch):
    monkeypatch.setattr(transport_module, "KEEPALIVE_TIMEOUT", 0.01)
    raw.scripts = [[LENGTH], [LENGTH]]
    await pushed(client, raw.url)
    await until(lambda: not client._transport._open, "the idle connection to be closed")
    assert client._transport._sweep is None
    await pushed(client, raw.url)

    assert raw.connections == 2


async def test_a_request_is_sent_again_once_and_not_on_every_idle_connection(raw, client):
    raw.scripts = [[CHUNKED, b"wait", b"0\r\n\r\n"]] * 3 + [[b""]] * 3
    slow = [asyncio.create_task(pushed(client, raw.url)) for _ in range(3)]
    await until(lambda: len(raw.requests) == 3, "three requests")
    raw.go.set()
    await asyncio.gather(*slow)
    with pytest.raises(httpx2.RemoteProtocolError):
        await pushed(client, raw.url)

    assert len(raw.requests) == 3 + 2


@pytest.mark.parametrize("size", [300_000, 500_000, 2_000_000])
async def test_a_connection_whose_body_came_at_once_is_read_on_for_the_next(size, raw, client):
    large = OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    raw.scripts = [[large], [LENGTH]]
    response = await client.send(client.build_request("GET", raw.url), stream=True)
    body = response.extensions[PUSHED]
    await until(lambda: body._size > body_module.BUFFER_LIMIT, "the buffer to be full")
    got = []
    await body.push(lambda read: got.append(len(read)) or False)
    await response.aclose()

    assert sum(got) == size
    assert await pushed(client, raw.url) == b"hi"
    assert raw.connections == 1


@pytest.mark.parametrize("fault", [b"no size\r\n", b"0\r\n\r\njunk after the end\r\n\r\n"])
async def test_what_came_before_a_fault_in_the_same_read_is_delivered(fault, raw, client):
    raw.scripts = [[CHUNKED + b"2\r\nhi\r\n" + fault], [LENGTH]]
    response = await client.send(client.build_request("GET", raw.url), stream=True)
    got = []
    with contextlib.suppress(httpx2.RemoteProtocolError):
        await response.extensions[PUSHED].push(lambda read: got.append(read) or False)
    await response.aclose()

    assert got == [b"hi"]
    assert await pushed(client, raw.url) == b"hi"
    assert raw.connections == 2


async def test_a_late_close_hits_no_request_that_came_after(raw, client):
    raw.scripts = [[LENGTH], [CHUNKED + b"2\r\nhi\r\n", b"wait", b"0\r\n\r\n"]]
    first = await client.send(client.build_request("GET", raw.url), stream=True)
    body = first.extensions[PUSHED]
    await body.push(lambda _: False)
    second = asyncio.create_task(pushed(client, raw.url))
    await until(lambda: len(raw.requests) == 2, "the second request")
    await first.aclose()
    await body.aclose()
    raw.go.set()

    assert await second == b"hi"
    assert raw.connections == 1


async def test_a_reader_that_has_enough_keeps_the_connection_if_the_end_is_near(raw, client, monkeypatch):
    monkeypatch.setattr(body_module, "DRAIN_TIMEOUT", 600)
    raw.scripts = [[CHUNKED + b"2\r\nhi\r\n", b"wait", b"0\r\n\r\n"], [LENGTH]]
    response = await client.send(client.build_request("GET", raw.url), stream=True)
    await response.extensions[PUSHED].push(lambda _: True)
    await response.aclose()
    raw.go.set()
    (transport,) = (client._transport,)
    await until(lambda: any(transport._idle.values()), "the connection to be idle")
    await pushed(client, raw.url)

    assert raw.connections == 1


async def test_a_reader_that_has_enough_does_not_wait_for_an_end_that_is_far(raw, client, monkeypatch):
    monkeypatch.setattr(body_module, "DRAIN_TIMEOUT", 0.01)
    raw.scripts = [[CHUNKED + b"2\r\nhi\r\n", b"wait"], [LENGTH]]
    response = await client.send(client.build_request("GET", raw.url), stream=True)
    await response.extensions[PUSHED].push(lambda _: True)
    await response.aclose()
    await until(lambda: not client._transport._open, "the connection to be given up")
    await pushed(client, raw.url)

    assert raw.connections == 2


async def test_a_connection_that_is_lost_before_it_is_used_is_an_error_at_once(raw, client):
    transport = client._transport
    host, port = raw.url.removeprefix("http://").split("/")[0].split(":")
    connection = await transport._connect((False, host, int(port)), 5)
    await until(lambda: raw.tasks, "the server to accept the connection")
    await raw.stop()
    await until(lambda: connection not in transport._open, "the connection to be lost")

    with pytest.raises(httpx2.RemoteProtocolError):
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", None, body_module.Body())


@with_clock
async def test_silence_in_a_body_ends_it(raw):
    raw.scripts = [[CHUNKED + b"2\r\nhi\r\n", b"wait"]]
    got = asyncio.Event()

    def sink(_: bytes) -> bool:
        got.set()
        return False

    async with httpx2.AsyncClient(transport=PushTransport(), timeout=httpx2.Timeout(20)) as client:
        response = await client.send(client.build_request("GET", raw.url), stream=True)
        pushing = asyncio.create_task(response.extensions[PUSHED].push(sink))
        await got.wait()
        advance(20)
        with pytest.raises(httpx2.ReadTimeout):
            await pushing
        await response.aclose()


async def test_a_body_without_a_reader_is_not_read_into_memory(raw, client):
    size = 8 * 1024 * 1024
    raw.scripts = [[OK + b"Content-Length: %d\r\n\r\n" % size, *[b"x" * 1024 * 1024] * 8]]
    response = await client.send(client.build_request("GET", raw.url), stream=True)
    body = response.extensions[PUSHED]
    await until(lambda: body._size > body_module.BUFFER_LIMIT, "the buffer to be full")
    assert not body.connection._transport.is_reading()
    assert body._size < 1024 * 1024
    assert sum([len(part) async for part in response.aiter_raw()]) == size


async def test_an_exception_of_a_sink_is_raised_by_push(raw, client):
    raw.scripts = [[CHUNKED, b"wait", b"2\r\nhi\r\n"]]

    def broken(_: bytes) -> bool:
        raise LookupError("broken")

    response = await client.send(client.build_request("GET", raw.url), stream=True)
    raw.go.set()
    with pytest.raises(LookupError):
        await response.extensions[PUSHED].push(broken)
    await response.aclose()


async def test_tls(tmp_path, monkeypatch):
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    status, _, err = await output(*command, *subject)
    assert status == 0, err
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with Raw(context) as raw:
        raw.scripts = [[CHUNKED + b"2\r\nhi\r\n", b"0\r\n\r\n"], [CHUNKED + b"2\r\nhi\r\n", b""]]
        async with httpx2.AsyncClient(transport=PushTransport(), timeout=None) as stranger:
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await stranger.get(raw.url)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        async with httpx2.AsyncClient(transport=PushTransport(), timeout=None) as client:
            assert await pushed(client, raw.url) == b"hi"
            with pytest.raises(httpx2.RemoteProtocolError):
                await pushed(client, raw.url)


async def test_the_loss_of_many_idle_connections_takes_linear_time(raw, client, monkeypatch):
    compared = 0

    class Counting(connection_module.Connection):
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return self is other

    monkeypatch.setattr(transport_module, "Connection", Counting)
    count = 20
    raw.scripts = [[CHUNKED, b"wait", b"0\r\n\r\n"]] * count
    answers = [asyncio.create_task(pushed(client, raw.url)) for _ in range(count)]
    await until(lambda: len(raw.requests) == count, "the requests")
    raw.go.set()
    await asyncio.gather(*answers)
    assert sum(map(len, client._transport._idle.values())) == count
    await raw.stop()
    await until(lambda: not client._transport._open, "the connections to be lost")

    assert not any(client._transport._idle.values())
    assert compared <= 2 * count


async def test_the_last_file_descriptors_are_not_for_upstreams(client, raw, monkeypatch):
    raw.default = lambda: [LENGTH]
    with monkeypatch.context() as patch:
        patch.setattr(transport_module, "files_left", lambda number: RESERVED_FILES // 2 - 1)
        with pytest.raises(httpx2.ConnectError, match="file descriptors"):
            await client.get(raw.url)
    assert raw.requests == []
    assert (await client.get(raw.url)).text == "hi"


def test_how_many_files_are_left():
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files_left(0) == (math.inf if limit == resource.RLIM_INFINITY else limit - 1)
