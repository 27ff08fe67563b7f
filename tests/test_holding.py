"""It holds: peers that stall, crawl, vanish, flood and dawdle cost what they may, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
from conftest import HELLO, events, joined
from websockets.asyncio.client import connect

from ws_chat.server.uvicorn_protocols import bounds, http
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

LONG = [f"{number:06} {'x' * 500}\n" for number in range(8000)]
CHAT = json.dumps({"messages": HELLO}).encode()
DOORS = ["sse", "websocket"]
POST = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT)
UPGRADE = (
    b"GET /v1/chat/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
FRAME = b"\x81" + bytes([0x80 | len(CHAT)]) + bytes(4) + CHAT


IDLE = {"timeout_keep_alive": 600}
"""So that uvicorn, which closes an idle connection after 5 seconds, is not who closes it."""


async def raw(service, door: str, *, buffer: int | None = None) -> socket.socket:
    """Ask at a door over a socket that nobody reads for us."""
    loop = asyncio.get_running_loop()
    peer = socket.socket()
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.setblocking(False)
    host, port = service.url.removeprefix("http://").split(":")
    await loop.sock_connect(peer, (host, int(port)))
    if door == "sse":
        await loop.sock_sendall(peer, POST)
        return peer
    await loop.sock_sendall(peer, UPGRADE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await loop.sock_recv(peer, 1)
    await loop.sock_sendall(peer, FRAME)
    return peer


async def nobody(service) -> None:
    async with asyncio.timeout(30):
        while service.connections.open:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", DOORS)
async def test_a_peer_that_takes_nothing_is_dropped_and_disturbs_nobody(door, serve, fake):
    service = await serve(write_timeout=0.3)
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = await raw(service, door, buffer=4096)
    first = await fake.request()
    async with service.socket() as other:
        for _ in range(5):
            assert joined(await other.chat()) == "Hello"
    await asyncio.wait_for(first.closed.wait(), 30)
    await nobody(service)
    assert service.relay.running == 0
    async with httpx.AsyncClient() as client:
        figures = (await client.get(service.url + "/metrics")).text
    assert f'ws_chat_connections_dropped_total{{door="{door}"}} 1.0' in figures
    stalled.close()


async def test_a_peer_that_crawls_is_not_dropped(serve, fake):
    service = await serve(write_timeout=0.5)
    fake.reply(text(*LONG))
    loop = asyncio.get_running_loop()
    crawling = await raw(service, "sse", buffer=4096)
    received = bytearray()
    for _ in range(20):  # four times the write timeout
        received += await loop.sock_recv(crawling, 4096)
        await asyncio.sleep(0.1)
    while not received.endswith(b"0\r\n\r\n"):
        received += await loop.sock_recv(crawling, 1 << 20)
    crawling.close()
    _, _, body = bytes(received).partition(b"\r\n\r\n")
    stream = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        stream, body = stream + body[: int(size, 16)], body[int(size, 16) + 2 :]
    assert "".join(event["data"] for event in events(stream)[:-1]) == "".join(LONG)


async def test_memory_for_a_peer_that_takes_nothing_is_bounded(service, fake):
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = await raw(service, "websocket", buffer=4096)
    async with asyncio.timeout(30):
        while not service.relay.running:
            await asyncio.sleep(0.01)
        (log,) = service.relay._store._logs.values()
        while log.last < len(LONG) - 1:
            await asyncio.sleep(0.01)
    (protocol,) = service.server.server_state.connections
    assert not protocol.is_writable()
    assert protocol.transport.get_write_buffer_size() < 500_000, "4 MB are waiting in the log"
    peer = protocol.transport.get_extra_info("socket")
    assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * bounds.SEND_BUFFER
    stalled.close()


async def test_a_socket_that_answers_no_pings_is_dropped(serve):
    service = await serve(server={"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1})
    silent = await raw(service, "websocket")
    await nobody_after_one(service)
    silent.close()


async def nobody_after_one(service) -> None:
    async with asyncio.timeout(30):
        while not service.connections.open:
            await asyncio.sleep(0)
    await nobody(service)


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
async def test_who_dawdles_with_a_request_is_closed(begun, serve, monkeypatch):
    service = await serve(server=IDLE)
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    monkeypatch.setattr(http, "BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(begun)
    async with asyncio.timeout(30):
        try:
            while await reader.read(65536):
                pass
        except ConnectionResetError:
            pass
    writer.close()
    await nobody(service)


async def test_an_answer_may_take_longer_than_a_request(service, fake, monkeypatch):
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr(http, "BODY_TIMEOUT", 0.1)
    fake.default = Reply(text("a"))
    async with service.socket() as socket_, httpx.AsyncClient() as client:
        assert (await client.get(service.url + "/healthz")).status_code == 200
        await asyncio.sleep(0.3)
        assert joined(await socket_.chat()) == "a"


async def test_a_head_has_a_size(service):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    for _ in range(100):
        writer.write(b"X-Y: %b\r\n" % (b"z" * 1000))
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_one_that_floods_disturbs_nobody(service, fake):
    pieces = [f"{number} " for number in range(50)]
    fake.default = Reply(text(*pieces))
    async with connect(service.ws_url) as flooding:

        async def flood() -> None:
            while True:
                await flooding.send("{" * 50)

        async def read() -> None:
            async for _ in flooding:
                pass

        async def ask() -> str:
            async with service.socket() as socket_:
                return joined(await socket_.chat())

        floods = [asyncio.create_task(flood()), asyncio.create_task(read())]
        answers = await asyncio.gather(*(ask() for _ in range(200)))
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        flooding.transport.abort()  # it could not hear the answer to a close frame
    assert answers == ["".join(pieces)] * 200
    await nobody(service)
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
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    writer.close()
    async with asyncio.timeout(30):
        while service.server.server_state.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("trailer", [b"A: b\r\n", b"b"])
async def test_trailers_have_a_size(trailer, service):
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ")
    for _ in range(200):
        writer.write(trailer * (1000 // len(trailer)))
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_a_large_body_in_small_chunks_is_taken(service, fake):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 300_000}]}).encode()

    async def chunks():
        for at in range(0, len(body), 10):
            yield body[at : at + 10]

    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.post(service.stream_url, content=chunks())
    assert response.status_code == 200


async def test_a_line_break_keeps_no_connection_open(serve, monkeypatch):
    service = await serve(server=IDLE)
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    writer.write(b"\r\n")
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_a_slow_reader_whose_pongs_come_late_is_not_dropped(serve, fake):
    service = await serve(server={"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1})
    fake.reply(text(*LONG))
    crawling = await raw(service, "websocket", buffer=4096)
    loop = asyncio.get_running_loop()
    received = b""
    for _ in range(20):  # ten times the ping timeout
        received += await loop.sock_recv(crawling, 4096)
        await asyncio.sleep(0.1)
    assert service.connections.open == 1
    crawling.close()


async def test_pings_drop_a_stalled_peer_where_no_write_timeout_does(serve, fake, tmp_path):
    """On a Unix domain socket the kernel watches nobody."""
    service = await serve(server={"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1})
    config, state = service.server.config, service.server.server_state
    loop = asyncio.get_running_loop()
    listening = await loop.create_unix_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state=service.server.lifespan.state),
        str(tmp_path / "socket"),
    )
    service.server.servers.append(listening)
    fake.reply([*text(*LONG)[:-3], Hang()])
    stalled = socket.socket(socket.AF_UNIX)
    stalled.setblocking(False)
    await loop.sock_connect(stalled, str(tmp_path / "socket"))
    await loop.sock_sendall(stalled, UPGRADE)
    while not (await loop.sock_recv(stalled, 4096)).endswith(b"\r\n\r\n"):
        pass
    await loop.sock_sendall(stalled, FRAME)
    first = await fake.request()
    await asyncio.wait_for(first.closed.wait(), 30)
    stalled.close()
    await nobody(service)
