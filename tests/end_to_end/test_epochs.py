"""An id can come to name another generation; a position of the one before never continues in it."""

from __future__ import annotations

import httpx
import pytest
from support.service import HELLO, both_paths, events, joined
from support.waiting import until

from ws_chat.protocol.errors import LOST
from ws_chat.protocol.frames import Failed, Start
from ws_chat.stores.base import GenerationKey
from ws_chat.testing import Cut, Hang, Reply, text

pytestmark = [pytest.mark.anyio, both_paths]

R1 = GenerationKey("anonymous", "r1", named=True)


async def follow(service, query: str = "", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.get(f"{service.stream_url}/r1{query}", headers=headers)


async def test_every_generation_has_its_own(serve, fake):
    service = await serve(retention=0.05)
    epochs = set()
    async with service.socket() as socket:
        for _ in range(3):
            start, *_ = await socket.chat(id="r1")
            epochs.add(start["epoch"])
            await until(lambda: not service.relay._store._logs, "the answer to be forgotten")
        unnamed, *_ = await socket.chat()

    assert len(epochs) == 3
    assert "epoch" not in unnamed


async def test_every_reader_gets_the_same(service, fake):
    async with service.socket() as socket:
        (start, *_) = await socket.chat(id="r1")
        (again, *_) = await socket.chat(id="r1")
        await socket.send({"type": "resume", "id": "r1", "after": 1})
        resumed, *_ = await socket.until_end()
    ids = [event["id"] for event in events((await follow(service, "?format=frames")).content)]

    assert start["epoch"] == again["epoch"] == resumed["epoch"]
    assert ids == [f"{seq}-{start['epoch']}" for seq in (0, 2, 3)]


@pytest.mark.parametrize("runs", [True, False])
async def test_an_id_that_is_used_again_continues_no_old_reader(runs, service, fake):
    fake.reply(text("a", "b", "c"))
    fake.default = Reply([*text("X", "Y", "Z")[:4], Hang()]) if runs else Reply(text("X", "Y", "Z"))
    async with service.socket() as socket, service.socket() as other:
        first, *_ = await socket.chat(id="r1")
        service.relay._store.remove(R1)
        await socket.send({"messages": HELLO, "id": "r1"})
        second = await socket.receive()
        assert [(await socket.receive())["content"] for _ in range(3)] == ["X", "Y", "Z"]
        if not runs:
            assert (await socket.receive())["type"] == "done"
        for seq in (0, 1, 4, 9):
            refused = await other.ask({"type": "resume", "id": "r1", "after": seq, "epoch": first["epoch"]})
            error = refused["error"]
            assert (refused["id"], error["code"], error["status"]) == ("r1", "generation_gone", 410)
            assert (error["type"], error["retryable"], "seq" in refused) == ("invalid_request_error", False, False)
            event_id = f"{seq}-{first['epoch']}"
            for response in (
                await follow(service, f"?after={event_id}"),
                await follow(service, "?format=frames", **{"Last-Event-ID": event_id}),
                await service.post({"messages": HELLO, "id": "r1"}, **{"Last-Event-ID": event_id}),
            ):
                assert (response.status_code, response.json()["error"]) == (410, error)
        start = await other.ask({"type": "resume", "id": "r1", "epoch": second["epoch"]})
        assert (start["seq"], start["epoch"]) == (0, second["epoch"])
        if runs:
            await other.send({"type": "cancel", "id": "r1"})
        assert joined(await other.until_end()) == "XYZ"


async def test_without_an_epoch_a_position_is_that_of_whichever_has_the_id(service, fake):
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await socket.send({"type": "resume", "id": "r1", "after": 1})
        start, *tokens, _ = await socket.until_end()

    assert (start["seq"], joined(tokens)) == (1, "lo")
    assert [event["data"] for event in events((await follow(service, "?after=1")).content)] == ["lo", "[DONE]"]


@pytest.mark.parametrize("epoch", ["", "a-b", "a\n", "a" * 33, "é", None, 1])
async def test_a_malformed_epoch_is_refused(epoch, service, fake):
    async with service.socket() as socket:
        refused = await socket.ask({"type": "resume", "id": "r1", "epoch": epoch})

    assert (refused["id"], refused["error"]["code"], refused["error"]["param"]) == ("r1", "invalid_request", "epoch")


async def test_a_chat_that_is_posted_again_is_read_on(service, fake):
    chat = {"messages": HELLO, "id": "r1"}
    whole = events((await service.post(chat)).content)
    rest = events((await service.post(chat, **{"Last-Event-ID": whole[0]["id"]})).content)
    frames = events((await service.post(chat, query="?format=frames", **{"Last-Event-ID": whole[0]["id"]})).content)
    end = events((await service.post(chat, **{"Last-Event-ID": whole[-1]["id"]})).content)

    assert [event["data"] for event in whole] == ["Hel", "lo", "[DONE]"]
    assert rest == whole[1:]
    assert [event["id"] for event in frames] == [event["id"] for event in whole]
    assert end == whole[-1:], "only a GET is answered 204"
    assert len(fake.requests) == 1


async def test_a_chat_that_is_posted_again_too_late_starts_nothing(service, fake):
    chat = {"messages": HELLO, "id": "r1"}
    whole = events((await service.post(chat)).content)
    service.relay._store.remove(R1)
    for position in (whole[0]["id"], "1"):
        response = await service.post(chat, **{"Last-Event-ID": position})
        assert (response.status_code, response.json()["error"]["code"]) == (410, "generation_gone")
    assert len(fake.requests) == 1

    assert (await service.post(chat, **{"Last-Event-ID": ""})).status_code == 200
    assert len(fake.requests) == 2


async def test_a_position_of_a_posted_chat_is_checked(service, fake):
    chat = {"messages": HELLO, "id": "r1"}
    await service.post(chat)
    for position in ("4", "x", "1-"):
        response = await service.post(chat, **{"Last-Event-ID": position})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "after")
    assert (await service.post({"messages": HELLO}, **{"Last-Event-ID": "x"})).status_code == 200, "this is not named"


async def test_a_position_beyond_what_was_lost_gets_the_terminal(service, fake):
    """The replica of a generation may have shown more than it had logged."""
    log = await service.relay._store.create(R1, Start("r1", 0, "m", "e1"), b"{}")
    log.append([b'{"content":"a"}'])
    log.end(Failed("r1", 2, LOST))
    async with service.socket() as socket:
        for seq in (2, 3, 9):
            await socket.send({"type": "resume", "id": "r1", "after": seq, "epoch": "e1"})
            start, failed = await socket.until_end()
            assert (start["seq"], failed["seq"], failed["error"]["code"]) == (seq, 2, "generation_lost")
            for response in (await follow(service, f"?after={seq}-e1"), await follow(service, f"?after={seq}")):
                (end,) = events(response.content)
                assert (response.status_code, end["event"], end["id"]) == (200, "error", "2-e1")


async def test_the_end_of_one_that_failed_otherwise_is_204(service, fake):
    fake.reply([*text("a")[:2], Cut()])
    async with service.socket() as socket:
        *_, failed = await socket.chat(id="r1")

    assert (await follow(service, f"?after={failed['seq']}")).status_code == 204
