"""The two senders, each at the moments when its connection goes away."""

from __future__ import annotations

import asyncio

import pytest

from ws_chat.protocol.frames import Pong, encode
from ws_chat.server.chat.sender import MAX_REPLIES, AwaitedSender, DirectSender

pytestmark = pytest.mark.anyio


class Connection:
    """A direct writer whose peer is there, or gone."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.full = False
        self.written = []
        self.sent = 0
        self.dropped = False
        self.on_writable = None

    def is_writable(self) -> bool:
        return not (self.gone or self.full)

    def is_gone(self) -> bool:
        return self.gone

    def write_direct(self, frame) -> None:
        self.written.append(self.encode(frame))


async def test_a_connection_that_is_gone_already_ends_a_sender():
    sender = DirectSender(encode, Connection(gone=True))
    assert not sender.writable
    assert await sender.ended is False


async def test_a_connection_that_goes_away_ends_a_sender():
    connection = Connection()
    sender = DirectSender(encode, connection)
    sender.open()
    await sender.reply(Pong())
    assert connection.written == [b'{"type":"pong"}']
    connection.gone = True
    connection.on_writable()
    assert await sender.ended is False
    await sender.reply(Pong())
    assert len(connection.written) == 1


@pytest.mark.parametrize("fault", [ConnectionResetError(), None])
async def test_what_cannot_be_sent_ends_an_awaited_sender(fault):
    async def send(_: list[bytes]) -> None:
        if fault:
            raise fault

    sender = AwaitedSender(encode, send)
    sender.open()
    sender.write(Pong())
    sender.close()
    assert await sender.ended is (fault is None)


async def test_a_waiter_for_an_awaited_sender_may_be_cancelled():
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    async def send(_: list[bytes]) -> None:
        await asyncio.Event().wait()

    sender = AwaitedSender(encode, send)
    sender.open()
    sender.write(Pong())
    sender.ended.cancel()
    await sender.stop()
    await asyncio.sleep(0)  # a turn, in which the loop would call the handler
    assert seen == []


async def test_a_reply_that_waits_for_room_returns_when_the_sender_is_stopped():
    connection = Connection()
    connection.full = True
    sender = DirectSender(encode, connection)
    sender.open()
    for _ in range(MAX_REPLIES):
        await sender.reply(Pong())
    waiting = asyncio.create_task(sender.reply(Pong()))
    await asyncio.sleep(0)
    assert not waiting.done()
    await sender.stop()
    await asyncio.wait_for(waiting, 30)
    assert connection.written == []
