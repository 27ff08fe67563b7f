"""It holds: peers that stall, crawl, vanish, flood and dawdle cost what they may, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
from support.peers import CHAT, FRAME, UPGRADE, accepts, all_closed, closed, raw, unchunked, upgrade
from support.service import events, joined
from support.waiting import until

from ws_chat.server.uvicorn_protocols import bounds, http
from ws_chat.server.uvicorn_protocols.websocket import DirectWebSocketProtocol
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

LONG = [f"{number:06} {'x' * 8000}\n" for number in range(500)]
"""4 MB, more than the kernel keeps for a peer that reads nothing."""
DOORS = ["sse", "websocket"]
IDLE = {"timeout_keep_alive": 600}
"""So that uvicorn, which closes an idle connection after 5 seconds, is not who closes it."""


async def figure(service, name: str) -> str:
    """Return the value of one of the server's metrics, by its name and labels."""
    async with httpx.AsyncClient(timeout=None) as client:
        page = (await client.get(service.url + "/metrics")).text
    return next(line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(name + " "))


@pytest.mark.parametrize("door", DOORS)
async def test_a_peer_that_reads_nothing_is_dropped_and_affects_no_other(door, serve, fake):
    service = await serve(write_timeout=0.3)
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = await raw(service, door, buffer=4096)
    first = await fake.request()
    async with service.socket() as other:
        for _ in range(5):
            assert joined(await other.chat()) == "Hello"
    await first.closed.wait()
    await all_closed(service)
    assert service.relay.running == 0
    assert await figure(service, f'ws_chat_connections_dropped_total{{door="{door}"}}') == "1.0"
    stalled.close()


async def test_a_peer_that_reads_slowly_is_not_dropped(serve, fake):
    """It takes longer than the write timeout for what the kernel keeps for it, but something within each."""
    service = await serve(write_timeout=CRAWL_TIMEOUT)
    fake.default = Reply(text(*LONG))
    received = None
    while received is None:
        crawling = await raw(service, "sse", buffer=4096)
        received = await crawl(crawling)
        if received is None:
            crawling.close()
    loop = asyncio.get_running_loop()
    crawling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    while not received.endswith(b"0\r\n\r\n"):
        received += await loop.sock_recv(crawling, 1 << 20)
    crawling.close()
    _, _, body = bytes(received).partition(b"\r\n\r\n")
    assert "".join(event["data"] for event in events(unchunked(body))[:-1]) == "".join(LONG)


CRAWL_TIMEOUT = 2


async def crawl(peer: socket.socket) -> bytearray | None:
    """Read slowly, for longer than CRAWL_TIMEOUT; return what came.

    None: this machine let so much time pass between two reads that the kernel may have dropped the peer, rightly.
    """
    loop = asyncio.get_running_loop()
    received = bytearray()
    start = last = loop.time()
    while last < start + 1.2 * CRAWL_TIMEOUT:
        try:
            received += await loop.sock_recv(peer, 4096)
        except ConnectionError:
            if loop.time() < last + CRAWL_TIMEOUT / 2:
                raise
        await asyncio.sleep(0.05)  # the pace of this reader
        if loop.time() > last + CRAWL_TIMEOUT / 2:
            return None
        last = loop.time()
    return received


async def test_memory_for_a_peer_that_reads_nothing_is_bounded(service, fake):
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = await raw(service, "websocket", buffer=4096)
    await until(lambda: service.relay.running, "the generation to start")
    (log,) = service.relay._store._logs.values()
    await until(lambda: log.last == len(LONG), "all deltas to be in the log")
    (protocol,) = service.server.server_state.connections
    assert not protocol.is_writable()
    assert protocol.transport.get_write_buffer_size() < 500_000, "4 MB are waiting in the log"
    peer = protocol.transport.get_extra_info("socket")
    assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * bounds.SEND_BUFFER
    stalled.close()


async def test_a_socket_that_answers_no_pings_is_dropped(serve):
    service = await serve(server={"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05})
    silent = await raw(service, "websocket")
    await closed(silent)
    await all_closed(service)
    assert await figure(service, 'ws_chat_connections_dropped_total{door="websocket"}') == "1.0"


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"G",
        b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/chat/ws HTTP/1.1\r\nUpgrade: websocket\r\nX: ",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nX: ",
        b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    ],
)
async def test_a_slow_request_is_closed(begun, serve, monkeypatch):
    service = await serve(server=IDLE)
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    monkeypatch.setattr(http, "BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(begun)
    with contextlib.suppress(ConnectionResetError):
        while await reader.read(65536):
            continue
    writer.close()
    await all_closed(service)


async def test_an_answer_may_take_longer_than_a_request(service, fake, monkeypatch):
    """While an answer is under way, no timer is left that would end its connection."""
    timers = []
    close_after = http.DirectHTTPProtocol._close_after

    def recorded(protocol: http.DirectHTTPProtocol, seconds: float | None) -> None:
        close_after(protocol, seconds)
        if protocol._deadline:
            timers.append(protocol._deadline)

    monkeypatch.setattr(http.DirectHTTPProtocol, "_close_after", recorded)
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.default = Reply([first, Wait(go), *rest])
    async with (
        service.socket() as socket_,
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, content=CHAT) as response,
    ):
        await socket_.send(CHAT)
        assert [(await socket_.receive())["type"] for _ in range(2)] == ["start", "token"]
        assert timers
        assert all(timer.cancelled() for timer in timers)
        go.set()
        assert joined(await socket_.until_end()) == "b"
        assert events(await response.aread())[-1]["data"] == "[DONE]"


async def test_a_head_has_a_size(service):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    for _ in range(100):
        writer.write(b"X-Y: %b\r\n" % (b"z" * 1000))
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_a_client_that_floods_affects_no_other(service, fake):
    pieces = [f"{number} " for number in range(50)]
    fake.default = Reply(text(*pieces))
    async with service.socket() as flooding:

        async def flood() -> None:
            while True:
                await flooding.send("{" * 50)

        async def read() -> None:
            async for _ in flooding.connection:
                pass

        async def ask() -> str:
            async with service.socket() as socket_:
                return joined(await socket_.chat())

        floods = [asyncio.create_task(flood()), asyncio.create_task(read())]
        answers = await asyncio.gather(*(ask() for _ in range(10)))
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        flooding.connection.transport.abort()  # it could not hear the answer to a close frame
    assert answers == ["".join(pieces)] * 10
    await all_closed(service)
    assert service.relay.running == 0


@pytest.mark.parametrize(
    "more",
    [
        b"X: " + b"y" * 9000 + b"\r\n",
        b"".join(b"X-%d: y\r\n" % number for number in range(200)),
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
)
async def test_what_is_no_handshake_is_answered_and_closed(more, serve):
    service = await serve(server=IDLE)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(UPGRADE[:-2] + more + b"\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    writer.close()
    await until(lambda: not service.server.server_state.connections, "the connection to be closed")


@pytest.mark.parametrize("trailer", [b"A: b\r\n", b"b"])
async def test_trailers_have_a_size(trailer, service):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ")
    for _ in range(200):
        writer.write(trailer * (1000 // len(trailer)))
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_large_body_in_small_chunks_is_accepted(service, fake):
    """The sizes of its chunks are more bytes than a head may have: they count only between two pieces of the body."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (body[at : at + 10] for at in range(0, len(body), 10))
    )
    assert len(chunks) - len(body) > http.MAX_HEAD
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(chunks + b"0\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    assert fake.requests[0].body["messages"][0]["content"] == "x" * 200_000


async def test_a_line_break_keeps_no_connection_open(serve, monkeypatch):
    service = await serve(server=IDLE)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)
    writer.write(b"\r\n")
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_slow_reader_whose_pongs_come_late_is_not_dropped(serve, fake, monkeypatch):
    """The ping waits behind what the reader has not taken."""
    service = await serve()
    fake.reply(text(*LONG))
    crawling = await raw(service, "websocket", buffer=4096)
    await behind(service)
    late = []
    keepalive_timeout = DirectWebSocketProtocol.keepalive_timeout

    def recorded(protocol: DirectWebSocketProtocol) -> None:
        late.append(protocol)
        keepalive_timeout(protocol)

    monkeypatch.setattr(DirectWebSocketProtocol, "keepalive_timeout", recorded)
    ping_soon(service)
    loop = asyncio.get_running_loop()
    for number in range(1, 6):
        await until(lambda number=number: len(late) >= number, "another ping timeout")
        assert await loop.sock_recv(crawling, 4096)
    assert service.connections.open == 1
    crawling.close()


async def behind(service) -> None:
    """Wait until the only connection takes no more bytes."""
    await until(lambda: service.server.server_state.connections, "the connection")
    (protocol,) = service.server.server_state.connections
    await until(lambda: not protocol.is_writable(), "the buffers of the connection to be full")


def ping_soon(service) -> None:
    """Let the only connection be pinged at once, and soon be given up if it does not answer."""
    (protocol,) = service.server.server_state.connections
    protocol.ping_timer.cancel()
    protocol.ping_interval = protocol.ping_timeout = 0.05
    protocol.schedule_ping()


async def test_pings_drop_a_stalled_peer_where_no_write_timeout_does(service, fake, tmp_path):
    """On a Unix domain socket the kernel watches nobody."""
    loop = asyncio.get_running_loop()
    service.server.servers.append(await loop.create_unix_server(accepts(service), str(tmp_path / "socket")))
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = socket.socket(socket.AF_UNIX)
    stalled.setblocking(False)
    await loop.sock_connect(stalled, str(tmp_path / "socket"))
    await upgrade(stalled)
    await loop.sock_sendall(stalled, FRAME)
    first = await fake.request()
    await behind(service)
    ping_soon(service)
    await first.closed.wait()
    await all_closed(service)
    stalled.close()
