"""An id that has come to name another generation: the client never joins the texts of the two."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.scripted import done, refusal, scripted, send_frames, start, token
from support.service import HELLO

from ws_chat.client import GenerationGoneError, HistoryGoneError, InvalidRequestError, connect, connect_sync
from ws_chat.stores.base import GenerationKey
from ws_chat.testing import text

pytestmark = pytest.mark.anyio

GONE = refusal("generation_gone", "invalid_request_error", retryable=False)
R1 = GenerationKey("anonymous", "r1", named=True)


async def replaced(service, fake):
    """Ask twice under one id, of which the server has forgotten the first use; return the first reply."""
    fake.reply(text("a", "b", "c"))
    fake.reply(text("X", "Y", "Z"))
    async with connect(service.url) as chat:
        first = await chat.ask(HELLO, request_id="r1")
        service.relay._store.remove(R1)
        second = await chat.ask(HELLO, request_id="r1")
    assert (first.text, second.text, first.epoch != second.epoch) == ("abc", "XYZ", True)
    return first


@pytest.mark.parametrize("after", [1, 3, 4, 9])
async def test_an_old_position_is_refused(after, service, fake):
    first = await replaced(service, fake)
    async with connect(service.url) as chat:
        reply = chat.resume("r1", after=after, epoch=first.epoch)
        with pytest.raises(GenerationGoneError) as gone:
            await reply
    assert (reply.text, reply.status, gone.value.code) == ("", "failed", "generation_gone")
    assert isinstance(gone.value, HistoryGoneError)


async def test_a_reader_that_has_nothing_yet_starts_again(service, fake):
    first = await replaced(service, fake)
    retries = []
    async with connect(service.url, on_retry=lambda reason, _: retries.append(reason)) as chat:
        reply = await chat.resume("r1", epoch=first.epoch)
    assert (reply.text, reply.epoch != first.epoch) == ("XYZ", True)
    assert reply.start_frame
    assert reply.start_frame["epoch"] == reply.epoch
    assert [type(reason) for reason in retries] == [GenerationGoneError]


def replacing(*frames, then=()):
    """Return a server that breaks off after these frames, and has another generation when its client comes back."""
    received: list[dict] = []

    async def handle(socket):
        async for message in socket:
            frame = json.loads(message)
            received.append(frame)
            if frame.get("type") == "resume":
                await send_frames(socket, "r1", GONE)
            elif len(received) > 1:
                await send_frames(socket, "r1", *then)
            else:
                await send_frames(socket, "r1", *frames)
                socket.transport.abort()

    return handle, received


async def test_text_that_was_given_out_is_not_continued_by_another_answer():
    handle, received = replacing({**start(), "epoch": "e1"}, token(1, "a"))
    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        with pytest.raises(GenerationGoneError, match=r"another answer has its id now.*Ask again, with a new id"):
            await reply
        assert (reply.text, reply.status, reply.seq) == ("a", "failed", 1)
    assert received[1:] == [{"type": "resume", "id": "r1", "after": 1, "epoch": "e1"}]


async def test_a_chat_of_which_nothing_was_received_is_sent_again():
    handle, received = replacing(
        {**start(), "epoch": "e1"}, then=({**start(), "epoch": "e2"}, token(1, "X"), token(2, "Y"), done(3))
    )
    async with scripted(handle) as url, connect(url) as chat:
        reply = await chat.ask(HELLO, request_id="r1")
    assert (reply.text, reply.epoch, reply.start_frame["epoch"]) == ("XY", "e2", "e2")
    assert received[1] == {"type": "resume", "id": "r1", "after": 0, "epoch": "e1"}
    assert received[2] == received[0], "the same request: of one that is there already it gets the answer"


async def test_a_chat_whose_id_another_request_has_now_is_refused():
    conflict = refusal("id_conflict", "invalid_request_error", retryable=False)
    handle, _ = replacing({**start(), "epoch": "e1"}, then=(conflict,))
    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        with pytest.raises(InvalidRequestError, match="id_conflict"):
            await reply
        assert reply.text == ""


async def test_one_that_was_cancelled_meanwhile_is_not_asked_for_again():
    received: list[str] = []

    async def handle(socket):
        async for message in socket:
            received.append(json.loads(message).get("type"))
            match received[-1]:
                case None:
                    await send_frames(socket, "r1", {**start(), "epoch": "e1"})
                    await reply.cancel()
                case "cancel" if len(received) == 2:
                    socket.transport.abort()
                case "resume":
                    await send_frames(socket, "r1", GONE)

    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.ask(HELLO, request_id="r1")
        await reply
    assert (reply.status, reply.text) == ("cancelled", "")
    assert None not in received[1:]


async def test_one_that_is_followed_and_cancelled_leaves_another_alone():
    received: list[str] = []

    async def handle(socket):
        async for message in socket:
            received.append(json.loads(message)["type"])
            if received[-1] == "resume":
                await reply.cancel()
                await send_frames(socket, "r1", GONE)

    async with scripted(handle) as url, connect(url) as chat:
        reply = chat.resume("r1", epoch="e1")
        await reply
    assert (reply.status, reply.text, received) == ("cancelled", "", ["resume", "cancel"])


async def test_a_server_without_epochs_is_asked_without():
    async def handle(socket):
        frame = json.loads(await socket.recv())
        if frame.get("type") == "resume":
            assert frame == {"type": "resume", "id": "r1", "after": 1}
            await send_frames(socket, "r1", start(1), token(2, "b"), done(3))
            await socket.wait_closed()
        else:
            await send_frames(socket, "r1", start(), token(1, "a"))

    async with scripted(handle) as url, connect(url) as chat:
        reply = await chat.ask(HELLO, request_id="r1")
    assert (reply.text, reply.epoch) == ("ab", None)


async def test_without_async_it_is_the_same(service, fake):
    first = await replaced(service, fake)

    def run() -> None:
        with connect_sync(service.url) as chat:
            with pytest.raises(GenerationGoneError):
                chat.resume("r1", after=1, epoch=first.epoch).end()
            whole = chat.resume("r1").end()
            assert (chat.resume("r1", after=1, epoch=whole.epoch).end().text, whole.text) == ("YZ", "XYZ")

    await asyncio.to_thread(run)
