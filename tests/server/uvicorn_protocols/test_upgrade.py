"""Requests with an `Upgrade`: what is no WebSocket handshake is read as if the header were not there."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route
from support.peers import CHAT, UPGRADE
from support.processes import need, output

from ws_chat.server.uvicorn_protocols.http import DirectHTTPProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

pytestmark = pytest.mark.anyio

HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
"""A request that is sent as a body."""
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
IGNORED = {
    "h2c": H2C,
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "several": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket, h2c\r\n",
    "repeated": b"Upgrade: websocket\r\nConnection: Upgrade\r\nUPGRADE: TLS/1.0\r\nConnection: keep-alive\r\n",
}
every_upgrade = pytest.mark.parametrize("fields", IGNORED.values(), ids=IGNORED)


def post(fields: bytes, body: bytes = CHAT, *, path: bytes = b"/v1/chat/stream") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, fields, len(body)) + body


def chunked(fields: bytes, body: bytes = CHAT) -> bytes:
    head = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields
    middle = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:]))
    return head + chunks + b"0\r\nUpgrade: h2c\r\n\r\n"


def statuses(raw: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


class Wire:
    """A connection whose parts reach the server in reads of their own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reads: asyncio.Queue[int]) -> None:
        self.reader = reader
        self.writer = writer
        self._reads = reads

    async def send(self, *parts: bytes) -> None:
        """Send each part once the server has read the one before it."""
        for part in parts:
            self.writer.write(part)
            left = len(part)
            while left:
                left -= await self._reads.get()

    async def answer(self) -> bytes:
        """Return one chunked response."""
        return await self.reader.readuntil(b"\r\n0\r\n\r\n")

    async def rest(self) -> bytes:
        """Return everything until the server closes the connection."""
        raw = await self.reader.read()
        self.writer.close()
        return raw


@pytest.fixture
async def wires(service, monkeypatch) -> AsyncIterator[Callable[[], Awaitable[Wire]]]:
    """Return a function that connects to the server."""
    reads: asyncio.Queue[int] = asyncio.Queue()
    data_received = DirectHTTPProtocol.data_received
    opened: list[Wire] = []

    def counted(protocol: DirectHTTPProtocol, data: bytes) -> None:
        data_received(protocol, data)
        reads.put_nowait(len(data))

    monkeypatch.setattr(DirectHTTPProtocol, "data_received", counted)

    async def connect() -> Wire:
        opened.append(Wire(*await asyncio.open_connection(*service.url.removeprefix("http://").split(":")), reads))
        return opened[-1]

    yield connect
    for wire in opened:
        wire.writer.close()


def in_two(request: bytes) -> Iterable[tuple[bytes, bytes]]:
    return ((request[:at], request[at:]) for at in range(1, len(request)))


@every_upgrade
@pytest.mark.parametrize("request_of", [post, chunked])
async def test_the_body_is_a_body_however_it_comes(fields, request_of, wires, fake):
    """In one read, in two of any sizes, and byte by byte; and the connection serves the next request."""
    request = request_of(fields)
    ways = [(request,), tuple(bytes([byte]) for byte in request), *in_two(request)]
    for parts in ways:
        wire = await wires()
        await wire.send(*parts)
        answer = await wire.answer()
        assert (statuses(answer), answer.count(b"data: [DONE]")) == ([200], 1), parts
        await wire.send(PROBE)
        assert statuses(await wire.rest()) == [200], parts
    assert [request.body["messages"] for request in fake.requests] == [json.loads(CHAT)["messages"]] * len(ways)


@every_upgrade
async def test_a_body_is_never_a_request(fields, wires):
    wire = await wires()
    request = post(fields, HIDDEN)
    await wire.send(request[: -len(HIDDEN)], HIDDEN, PROBE)
    raw = await wire.rest()
    assert b"invalid_json" in raw
    assert b"ws_chat_" not in raw, "the page of metrics"
    assert statuses(raw) == [400, 200]


@every_upgrade
async def test_several_of_them_on_one_connection(fields, wires, fake):
    wire = await wires()
    for request in (post(fields), chunked(fields), post(b""), post(fields)):
        head, _, body = request.partition(b"\r\n\r\n")
        await wire.send(head + b"\r\n", b"\r\n", body)
        assert statuses(await wire.answer()) == [200]
    await wire.send(UPGRADE)
    assert statuses(await wire.reader.readuntil(b"\r\n\r\n")) == [101]
    assert len(fake.requests) == 4


@every_upgrade
@pytest.mark.parametrize("after", [PROBE, post(H2C), UPGRADE, HIDDEN], ids=["get", "post", "handshake", "open"])
async def test_a_request_pipelined_behind_it_is_not_answered(fields, after, wires, fake):
    for parts in ((post(fields) + after,), (post(fields)[:-1], post(fields)[-1:] + after)):
        wire = await wires()
        await wire.send(*parts)
        raw = await wire.rest()
        assert statuses(raw) == [200]
        assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert len(fake.requests) == 2


async def test_one_that_is_pipelined_does_not_break_the_answer(wires, fake):
    wire = await wires()
    await wire.send(post(b"") + post(H2C))
    assert statuses(await wire.rest()) == [200]
    assert len(fake.requests) == 1


async def test_a_request_that_closes_the_connection_still_does(wires):
    wire = await wires()
    await wire.send(post(b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"))
    raw = await wire.rest()
    assert statuses(raw) == [200]
    assert b"connection: close\r\n" in raw


async def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(wires):
    wire = await wires()
    request = post(H2C + b"Expect: 100-continue\r\n")
    await wire.send(request[: -len(CHAT)])
    assert statuses(await wire.reader.readuntil(b"\r\n\r\n")) == [100]
    await wire.send(CHAT)
    assert statuses(await wire.answer()) == [200]


async def test_http_1_0_knows_no_upgrade(wires):
    wire = await wires()
    await wire.send(UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert statuses(await wire.rest()) == [400]


@pytest.mark.parametrize("path", [b"/v1/chat/ws", b"/v1/chat/stream/r1", b"/nowhere"])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d\r\n" % len(HIDDEN), HIDDEN),
        (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
    ],
    ids=["length", "chunked"],
)
async def test_a_handshake_with_a_body_is_refused_and_closes_the_connection(path, framing, body, wires):
    head = UPGRADE.replace(b"/v1/chat/ws", path)[:-2] + framing + b"\r\n"
    for parts in ((head + body,), (head, body)):
        wire = await wires()
        await wire.send(parts[0])
        for part in parts[1:]:
            wire.writer.write(part)
        raw = await wire.rest()
        assert statuses(raw) == [400]
        assert b"ws_chat_" not in raw


@pytest.mark.parametrize("fields", [b"", H2C, IGNORED["websocket"]], ids=["none", "h2c", "websocket"])
async def test_connect_is_refused_and_closes_the_connection(fields, wires):
    wire = await wires()
    await wire.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (fields, HIDDEN))
    assert statuses(await wire.rest()) == [400]


async def test_curl_that_offers_http_2(service):
    command = (need("curl"), "-sS", "--http2", "-d", CHAT.decode(), service.stream_url)
    status, out, err = await output(*command)
    assert (status, out) == (0, b"data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n"), err


async def test_trailers_do_not_become_headers(service, wires):
    async def headers(request):
        await request.body()
        return JSONResponse([name for name, _ in request.headers.items()], headers={"Connection": "close"})

    service.app.router.routes.insert(0, Route("/headers", headers, methods=["POST"]))
    wire = await wires()
    head = b"POST /headers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await wire.send(head + b"0\r\nX-Forwarded-Proto: https\r\n\r\n")
    raw = await wire.rest()
    assert json.loads(raw.partition(b"\r\n\r\n")[2]) == ["host", "transfer-encoding"]
