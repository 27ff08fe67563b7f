"""How connections end that a client has used wrongly: with an answer that arrives, and without a word in the log."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from support.peers import CHAT, POST, UPGRADE, connected, unchunked, upgrade
from support.service import events, joined
from support.waiting import until
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

from ws_chat.protocol.errors import ChatError
from ws_chat.testing import Reply, Wait, text

pytestmark = pytest.mark.anyio


async def read_all(peer) -> bytes:
    """Read until the server closes the connection. Raises ConnectionResetError."""
    received = b""
    while data := await asyncio.get_running_loop().sock_recv(peer, 1 << 16):
        received += data
    return received


def close_code(received: bytes) -> int:
    """Return the code of the only frame, a close frame (RFC 6455, section 5.5.1)."""
    assert received[0] == 0x88, received
    assert len(received) == 2 + received[1]
    return int.from_bytes(received[2:4], "big")


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


@pytest.mark.parametrize(
    "more",
    [b"", masked(Opcode.CLOSE, b"\x03\xe8"), masked(Opcode.TEXT, b"\xff")],
    ids=["nothing", "close", "text"],  # the masks are random
)
async def test_text_that_is_not_utf8_is_1007_whatever_comes_with_it(more, service, caplog):
    peer = await connected(service)
    await upgrade(peer)
    await asyncio.get_running_loop().sock_sendall(peer, masked(Opcode.TEXT, b"\xff\xfe") + more)

    assert close_code(await read_all(peer)) == 1007
    peer.close()
    assert caplog.records == []


@pytest.mark.parametrize("cut", [1, 600, 1000], ids=["in_the_first", "in_the_middle", "none"])
async def test_frames_sent_with_the_handshake_are_answered(cut, service):
    """No client may send them before the 101 (RFC 6455, section 4.1). Dropped, part of a frame would garble the next one."""
    peer = await connected(service)
    loop = asyncio.get_running_loop()
    padded = b'{"type":"ping"%b}' % (b" " * 600)  # more than one slice
    frames = masked(Opcode.TEXT, padded) + masked(Opcode.TEXT, b'{"type":"ping"}')
    await loop.sock_sendall(peer, UPGRADE + frames[:cut])
    received = b""
    while b"\r\n\r\n" not in received:
        received += await loop.sock_recv(peer, 4096)
    await loop.sock_sendall(peer, frames[cut:])
    pongs = b'\x81\x0f{"type":"pong"}' * 2
    while len(received.partition(b"\r\n\r\n")[2]) < len(pongs):
        received += await loop.sock_recv(peer, 4096)

    assert received.partition(b"\r\n\r\n")[2] == pongs
    peer.close()


async def test_what_is_too_big_is_1009_and_no_reset(serve, caplog, monkeypatch):
    """The server has read a small part of it when it closes. Closing at once would reset the connection."""
    monkeypatch.setattr("ws_chat.server.uvicorn_protocols.websocket.LINGER_TIMEOUT", 600)
    service = await serve(max_frame_bytes=1000)
    frame = masked(Opcode.TEXT, b"x" * 4_000_000)
    for _ in range(5):
        peer = await connected(service)
        await upgrade(peer)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(peer, frame)
        assert close_code(await read_all(peer)) == 1009
        peer.close()
    assert caplog.records == []
    await until(lambda: not service.server.server_state.connections, "the connections to be closed")


async def test_a_peer_that_goes_on_sending_is_closed(serve, monkeypatch):
    monkeypatch.setattr("ws_chat.server.uvicorn_protocols.websocket.LINGER_TIMEOUT", 0.05)
    service = await serve(max_frame_bytes=1000)
    peer = await connected(service)
    await upgrade(peer)
    with contextlib.suppress(ConnectionError):
        while True:
            await asyncio.get_running_loop().sock_sendall(peer, masked(Opcode.TEXT, b"x" * 10_000))
    peer.close()
    assert service.connections.open == 0


async def test_fragments_take_no_more_memory_than_their_bytes(service, fake):
    peer = await connected(service)
    await upgrade(peer)
    loop = asyncio.get_running_loop()
    first, *rest = (b"%c" % byte for byte in CHAT[:-1])
    await loop.sock_sendall(peer, masked(Opcode.TEXT, first, fin=False))
    await loop.sock_sendall(peer, b"".join(masked(Opcode.CONT, byte, fin=False) for byte in rest))
    (protocol,) = service.server.server_state.connections
    await until(lambda: protocol.frames and len(protocol.frames[0]) == len(CHAT) - 1, "the fragments to arrive")
    assert len(protocol.frames) == 1

    await loop.sock_sendall(peer, masked(Opcode.CONT, CHAT[-1:]))
    await fake.request()
    assert fake.requests[0].body["messages"] == json.loads(CHAT)["messages"]
    peer.close()


@pytest.mark.parametrize(
    "garbage", [b"\0\0\0", b"x" * 70_000, b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\nnonsense\r\n\r\n"], ids=len
)
async def test_garbage_behind_a_request_does_not_break_its_answer(garbage, service, fake, caplog):
    go = asyncio.Event()
    first, *rest = text("Hel", "lo")[1:]
    fake.default = Reply([Wait(go), first, *rest])
    peer = await connected(service)
    await asyncio.get_running_loop().sock_sendall(peer, POST + garbage)
    await fake.request()
    go.set()
    received = await read_all(peer)
    peer.close()

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert "".join(event["data"] for event in events(unchunked(body))) == "Hello[DONE]"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("direct", [True, False])
async def test_an_answer_to_http_1_0_is_not_chunked(direct, service, fake, monkeypatch):
    if not direct:
        monkeypatch.setattr("ws_chat.server.exchange.direct_writer", lambda *_: None)
    peer = await connected(service)
    await asyncio.get_running_loop().sock_sendall(peer, POST.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = (await read_all(peer)).partition(b"\r\n\r\n")
    peer.close()

    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"data: Hel\n\ndata: lo\n\nevent: done\ndata: [DONE]\n\n"


@pytest.mark.parametrize("path", [b"/healthz", b"/metrics", b"/nowhere"])
async def test_a_response_of_known_length_to_http_1_0_has_that_length(path, service):
    peer = await connected(service)
    await asyncio.get_running_loop().sock_sendall(peer, b"GET %b HTTP/1.0\r\n\r\n" % path)
    head, _, body = (await read_all(peer)).partition(b"\r\n\r\n")
    peer.close()

    assert b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
    assert b"transfer-encoding" not in head.lower()


async def test_no_answer_is_sniffed(service, fake):
    for response in (await service.post(), await service.post(b"{")):
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_clients_that_flood_are_served_in_turn(service, fake):
    """In one turn of the event loop a little is parsed, however many connections have unparsed bytes."""
    loop = asyncio.get_running_loop()
    peers = [await connected(service) for _ in range(20)]
    for peer in peers:
        await upgrade(peer)
    floods = [asyncio.create_task(loop.sock_sendall(peer, masked(Opcode.PING, b"x") * 20_000)) for peer in peers]
    parsed: list[int] = []
    protocols = list(service.server.server_state.connections)
    turns = protocols[0]._turns
    await until(lambda: len(turns._waiting) > 10, "them to flood")
    async with service.socket() as socket:
        for _ in range(20):
            left = sum(len(protocol._unread) for protocol in protocols)
            await asyncio.sleep(0)
            parsed.append(left - sum(len(protocol._unread) for protocol in protocols))
        assert joined(await socket.chat()) == "Hello"
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    for peer in peers:
        peer.close()
    assert max(parsed) < 20 * 2048, parsed


async def test_a_small_read_is_parsed_at_once_however_late_it_is(service, monkeypatch):
    """It has no other turn. A busy machine may let PARSE_TIMEOUT pass before the first slice."""
    monkeypatch.setattr("ws_chat.server.uvicorn_protocols.websocket.PARSE_TIMEOUT", -1)
    async with service.socket() as socket:
        assert joined(await socket.chat()) == "Hello"
        assert joined(await socket.chat(user="x" * 2000)) == "Hello"


async def test_a_refusal_during_a_shutdown_is_sent_once(service, monkeypatch, caplog):
    """uvicorn's shutdown answers each handshake that is still being authenticated."""

    async def authenticate(_):
        (connection,) = service.server.server_state.connections
        connection.shutdown()
        raise ChatError("unauthorized", "No.")

    monkeypatch.setattr(service.connections, "_authenticate", authenticate)
    peer = await connected(service)
    await asyncio.get_running_loop().sock_sendall(peer, UPGRADE)

    answer = await read_all(peer)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 500 ")
    peer.close()
    await until(lambda: not service.server.server_state.tasks, "the end of the application's task")
    assert caplog.records == []


@pytest.mark.parametrize("size", [10, 1000], ids=["parsed_at_once", "in_turns"])
async def test_a_fault_in_the_parser_closes_the_connection(size, service, monkeypatch):
    """In place of a connection that is never read again."""
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    peer = await connected(service)
    await upgrade(peer)
    monkeypatch.setattr(WebSocketsSansIOProtocol, "data_received", lambda *_: 1 / 0)
    await asyncio.get_running_loop().sock_sendall(peer, masked(Opcode.TEXT, b" " * size))

    with contextlib.suppress(ConnectionResetError):
        assert await read_all(peer) == b""
    peer.close()
    (fault,) = faults
    assert isinstance(fault["exception"], ZeroDivisionError)
