"""The two outlets, each at the moments when its connection goes away."""

from __future__ import annotations

import asyncio

import pytest

from ws_chat.doors.outlet import AwaitedOutlet, DirectOutlet, Encoding
from ws_chat.frames import Pong, encode, encode_token

pytestmark = pytest.mark.anyio

ENCODING = Encoding(encode, encode_token)


class Connection:
    """A wire whose peer is there, or gone."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.written = []
        self.sent = 0
        self.dropped = False
        self.on_change = None

    def takes_bytes(self) -> bool:
        return not self.gone

    def is_gone(self) -> bool:
        return self.gone

    def write_direct(self, encoding, frame) -> None:
        self.written.append(encoding(frame))


async def test_a_wire_that_is_gone_already_ends_an_outlet():
    way_out = DirectOutlet(ENCODING, Connection(gone=True))
    assert not way_out.writable
    assert await way_out.ended is False


async def test_a_wire_that_goes_away_ends_an_outlet():
    connection = Connection()
    way_out = DirectOutlet(ENCODING, connection)
    await way_out.reply(Pong())
    assert connection.written == [b'{"type":"pong"}']
    connection.gone = True
    connection.on_change()
    assert await way_out.ended is False
    await way_out.reply(Pong())
    assert len(connection.written) == 1


@pytest.mark.parametrize("fault", [ConnectionResetError(), None])
async def test_what_cannot_be_sent_ends_an_awaited_outlet(fault):
    async def send(_: list[bytes]) -> None:
        if fault:
            raise fault

    way_out = AwaitedOutlet(ENCODING, send)
    way_out.write(Pong())
    way_out.close()
    assert await way_out.ended is (fault is None)


async def test_whoever_waits_for_an_awaited_outlet_may_be_cancelled():
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    async def send(_: list[bytes]) -> None:
        await asyncio.Event().wait()

    way_out = AwaitedOutlet(ENCODING, send)
    way_out.write(Pong())
    way_out.ended.cancel()
    await way_out.stop()
    await asyncio.sleep(0)  # a turn, in which the loop would call the handler
    assert seen == []
