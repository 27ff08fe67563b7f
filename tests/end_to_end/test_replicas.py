"""Several replicas behind one Redis: any of them serves any reader of a named generation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
from support.processes import environment
from support.service import HELLO, Service, events, joined
from support.waiting import until

from ws_chat import Settings, SettingsError
from ws_chat.protocol.deltas import encode_delta
from ws_chat.stores.base import GenerationKey
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

STOP = [{"role": "user", "content": "stop"}]


@pytest.fixture
async def replicas(shared, serve) -> tuple[Service, Service]:
    return await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)


def slowly(*contents: str) -> tuple[Reply, asyncio.Event]:
    """Return a reply that pauses after its first delta, and the event that lets it go on."""
    go = asyncio.Event()
    first, *rest = text(*contents)[1:]
    return Reply([first, Wait(go), *rest]), go


async def begin(socket, generation_id: str = "r1") -> None:
    """Start a generation and read its first delta."""
    await socket.send({"messages": HELLO, "id": generation_id})
    assert (await socket.receive())["type"] == "start"
    assert (await socket.receive())["content"] == "a"


async def begin_elsewhere(socket) -> None:
    """Follow a generation to its first delta."""
    await socket.send({"type": "resume", "id": "r1"})
    assert [(await socket.receive())["seq"], (await socket.receive())["content"]] == [0, "a"]


async def closed(fake, number: int = 1) -> None:
    await (await fake.request(number)).closed.wait()


async def over_http(method: str, service, generation_id: str = "r1", query: str = "", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.request(method, f"{service.stream_url}/{generation_id}{query}", headers=headers)


def own_logs(service) -> dict[str, Any]:
    """Return by id what a replica produces."""
    return {log.key.id: log for log in service.relay._store._writer._running.values()}


def copies(service) -> list[Any]:
    """Return the logs that a replica follows."""
    return list(service.relay._store._follower._copies.values())


def running(service) -> list[str]:
    """Return the ids of what a replica produces and has not begun to end."""
    return [generation_id for generation_id, log in own_logs(service).items() if not log.ending]


async def until_read_elsewhere(service, generation_id: str = "r1") -> None:
    """Wait until the producer of a generation knows that it is read at another replica."""
    log = own_logs(service)[generation_id]
    await until(lambda: log.read_elsewhere, f"{generation_id} to have a reader elsewhere")


async def test_it_is_resumed_on_the_other_replica(replicas, fake):
    one, other = replicas
    fake.default, go = slowly("a", "b", "c")
    async with one.socket() as socket:
        epoch = (await socket.ask({"messages": HELLO, "id": "r1"}))["epoch"]
        assert (await socket.receive())["content"] == "a"
        socket.connection.transport.abort()
    async with other.socket() as socket:
        gone = await socket.ask({"type": "resume", "id": "r1", "after": 1, "epoch": "another"})
        assert gone["error"]["code"] == "generation_gone"
        await socket.send({"type": "resume", "id": "r1", "after": 1, "epoch": epoch})
        start = await socket.receive()
        go.set()
        *tokens, done = await socket.until_end()

    assert start == {"type": "start", "id": "r1", "seq": 1, "model": "gpt-4o-mini", "epoch": epoch}
    assert joined(tokens) == "bc"
    assert (done["status"], done["seq"], done["usage"]["completion_tokens"]) == ("completed", 4, 3)
    assert len(fake.requests) == 1
    for service in replicas:
        *tokens, end = events((await over_http("GET", service)).content)
        assert ("".join(token["data"] for token in tokens), end["data"]) == ("abc", "[DONE]")
        assert end["id"] == f"4-{epoch}"


async def test_an_id_that_is_used_again_continues_no_old_reader_on_any_replica(replicas, fake):
    one, other = replicas
    fake.reply(text("a", "b"))
    fake.default = Reply(text("X", "Y"))
    async with one.socket() as socket, other.socket() as elsewhere:
        first, *_ = await socket.chat(id="r1")
        one.relay._store.remove(GenerationKey("anonymous", "r1", named=True))

        async def forgotten() -> bool:
            return (await over_http("GET", other)).status_code == 404

        await until(forgotten, "the answer to be forgotten")
        second, *_ = await elsewhere.chat(id="r1")
        for service, asks in ((one, socket), (other, elsewhere)):
            for seq in (0, 1, 3):
                refused = await asks.ask({"type": "resume", "id": "r1", "after": seq, "epoch": first["epoch"]})
                assert refused["error"]["code"] == "generation_gone"
                response = await over_http("GET", service, **{"Last-Event-ID": f"{seq}-{first['epoch']}"})
                assert (response.status_code, response.json()["error"]["code"]) == (410, "generation_gone")
            await asks.send({"type": "resume", "id": "r1", "after": 1, "epoch": second["epoch"]})
            start, *tokens, _ = await asks.until_end()
            assert (start["epoch"], joined(tokens)) == (second["epoch"], "Y")


async def test_readers_of_both_replicas_and_transports_read_the_same(replicas, fake):
    one, other = replicas
    fake.default, go = slowly(*"abcdefgh")
    async with one.socket() as first, other.socket() as second, other.socket() as third:
        await begin(first)
        for socket in (second, third):
            await socket.send({"type": "resume", "id": "r1"})
        over_sse = asyncio.create_task(over_http("GET", other, query="?format=frames&after=1"))
        for socket in (second, third):
            assert [(await socket.receive())["seq"], (await socket.receive())["content"]] == [0, "a"]
        go.set()
        assert joined(await first.until_end()) == "bcdefgh"
        assert joined(await second.until_end()) == joined(await third.until_end()) == "bcdefgh"
        frames = [json.loads(event["data"]) for event in events((await over_sse).content)]
        assert (joined(frames), frames[-1]["seq"]) == ("bcdefgh", 9)


async def test_a_resume_waits_for_a_copy_that_is_behind(replicas, fake):
    one, other = replicas
    fake.default, go = slowly("a", *"bcdefgh")
    async with one.socket() as socket, other.socket() as second, other.socket() as third:
        await begin(socket)
        await second.send({"type": "resume", "id": "r1"})
        assert [(await second.receive())["seq"], (await second.receive())["content"]] == [0, "a"]
        log = own_logs(one)["r1"]
        log.append([encode_delta({"content": "x"})])
        assert (await socket.receive())["seq"] == 2
        assert (await third.ask({"type": "resume", "id": "r1", "after": 2}))["type"] == "start"
        assert (await third.ask({"type": "resume", "id": "r1", "after": 9}))["error"]["param"] == "after"
        go.set()
        assert joined(await third.until_end()) == "bcdefgh"


async def test_cancel_reaches_the_producer(replicas, fake):
    one, other = replicas
    fake.default = Reply([*text("a")[:2], Hang()])
    async with one.socket() as socket, other.socket() as elsewhere:
        await begin(socket)
        assert (await over_http("DELETE", other)).status_code == 204
        assert (await socket.receive())["status"] == "cancelled"
        await closed(fake)
        await begin(socket, "r2")
        await elsewhere.send({"type": "cancel", "id": "r2"})
        assert (await socket.receive())["status"] == "cancelled"
        await closed(fake, 2)
        assert (await elsewhere.ask({"type": "cancel", "id": "r9"}))["error"]["code"] == "not_found"
    assert (await over_http("DELETE", other)).status_code == 204
    assert (await over_http("DELETE", other, "r9")).status_code == 404


async def test_sent_to_two_replicas_at_once_it_is_paid_for_once(replicas, fake):
    for number in range(10):
        answers = await asyncio.gather(*(service.frames(id=f"r{number}") for service in (*replicas, *replicas)))
        assert [joined(frames) for frames in answers] == ["Hello"] * 4
        assert len(fake.requests) == number + 1


async def test_another_body_is_a_conflict_on_the_other_replica_too(replicas, fake):
    one, other = replicas
    fake.default, go = slowly("a", "b")
    async with one.socket() as socket:
        await begin(socket)
        while_it_runs = await other.post({"messages": HELLO, "id": "r1", "temperature": 1})
        go.set()
        assert joined(await socket.until_end()) == "b"
        after_its_end = await other.post({"messages": HELLO, "id": "r1", "temperature": 1})
    for response in (while_it_runs, after_its_end):
        assert (response.status_code, response.json()["error"]["code"]) == (409, "id_conflict")


async def test_continuing_elsewhere_interrupts(replicas, fake):
    one, other = replicas
    fake.reply([*text("a")[:2], Hang()])
    async with one.socket() as socket:
        await begin(socket)
        frames = await other.frames(messages=STOP, previous_id="r1", id="r2")
        assert (await socket.receive())["status"] == "cancelled"
        await closed(fake)

    assert joined(frames) == "Hello"
    assert fake.requests[1].body["messages"] == [*HELLO, {"role": "assistant", "content": "a"}, *STOP]
    await one.frames(messages=STOP, previous_id="r2")
    assert len(fake.requests[2].body["messages"]) == 5


async def test_what_is_one_principals_is_nothing_to_another_anywhere(shared, serve, fake):
    keys = {"redis_urls": shared.url, "api_keys": "key-1,key-2"}
    one, other = await serve(**keys), await serve(**keys)
    first, second = ({"Authorization": f"Bearer key-{number}"} for number in (1, 2))
    await one.post({"messages": HELLO, "id": "r1"}, **first)
    for method in ("GET", "DELETE"):
        assert (await over_http(method, other, **second)).status_code == 404
    assert (await over_http("GET", other, **first)).status_code == 200


async def test_a_reader_elsewhere_keeps_it_running_until_the_last_one_leaves(shared, redis, serve, fake):
    settings = {"redis_urls": shared.url, "resume_window": 0.05}
    one, other = await serve(**settings), await serve(**settings)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with other.socket() as elsewhere:
        async with one.socket() as socket:
            await begin(socket)
            await begin_elsewhere(elsewhere)
            await until_read_elsewhere(one)
        async with one.socket() as socket:
            await begin(socket, "r2")
        # When the second one has been cancelled, the window of the first would have passed, too.
        await until(lambda: "r2" not in running(one), "the end of the generation without readers")
        assert running(one) == ["r1"]
    await until(lambda: not copies(other), "the copy to be left")
    await redis.delete(*await redis.keys("*:read/*"))  # as it expires
    await closed(fake)
    assert events((await over_http("GET", other)).content)[-1]["data"] == "[CANCELLED]"


async def test_unnamed_ones_never_touch_redis(replicas, redis):
    one, _ = replicas
    before = {key async for key in redis.scan_iter()}
    for _ in range(20):
        assert joined(await one.frames()) == "Hello"
    assert not {key async for key in redis.scan_iter(match="*unnamed*")}
    assert {key async for key in redis.scan_iter()} == before


async def test_what_has_ended_leaves_nothing(shared, redis, serve, fake):
    settings = {"redis_urls": shared.url, "retention": 0.5}
    one, other = await serve(**settings), await serve(**settings)
    for number in range(5):
        await one.frames(id=f"r{number}")
    await over_http("GET", other, "r1")

    async def only_replicas() -> bool:
        return {key.rpartition(b":")[2] for key in await redis.keys()} <= {b"lease", b"marker"}

    await until(only_replicas, "what has ended to be removed")
    assert (await over_http("GET", other, "r1")).status_code == 404


async def test_replicas_that_stop_leave_nothing(shared, redis, serve, fake, windows):
    windows("redis.connection.MARKER_TTL", 500)
    async with contextlib.AsyncExitStack() as stack:
        service = await serve(redis_urls=shared.url, retention=0.5)
        stack.push_async_callback(service.relay.close)
        await service.frames(id="r1")

    async def nothing() -> bool:
        return await redis.dbsize() == 0

    await until(nothing, "Redis to be empty")


async def test_the_bound_on_commands(shared, redis, serve, fake, windows):
    """Twenty generations at once, each of a hundred deltas a second, all of them read elsewhere too."""
    windows("redis.store.RENEWAL", 1.0)  # as it is
    one, other = await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)
    stop = asyncio.Event()
    fake.default = Reply([text("a")[1], Wait(stop)])
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(service.socket()) for service in [one] * 2 + [other] * 2]
        for number in range(20):
            await begin(sockets[number // 10], f"r{number}")
        for number in range(20):
            await sockets[2 + number // 10].send({"type": "resume", "id": f"r{number}"})
        logs = list(own_logs(one).values())
        await until(lambda: len(copies(other)) == 20, "the other replica to follow all generations")
        following = copies(other)

        async def talk() -> None:
            while True:
                for log in logs:
                    log.append([encode_delta({"content": "x"})])
                await asyncio.sleep(0.01)  # a hundred a second, or fewer

        async def listen(socket) -> None:
            async for _ in socket.connection:
                pass

        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(talk()), *(asyncio.create_task(listen(socket)) for socket in sockets)]
        begin_at, before = loop.time(), (await redis.info("stats"))["total_commands_processed"]
        await until(lambda: all(log.last > 150 for log in following), "150 deltas to be read elsewhere")
        after, seconds = (await redis.info("stats"))["total_commands_processed"], loop.time() - begin_at
        tasks[0].cancel()
        stop.set()
    per_second = (after - before) / seconds / 2
    # Five writes a second of each generation, at one of the two replicas, and 40 of each replica; the slower, the fewer.
    assert per_second <= 20 * 5 / 2 + 40, f"{per_second:.0f} commands per second and replica"


def test_without_the_setting_nothing_of_redis_is_imported():
    code = "from ws_chat.server.app import create_app\nimport sys\ncreate_app()\nprint('redis' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert out.stdout.strip() == "False"


def test_the_address_of_redis_is_one():
    with pytest.raises(SettingsError, match="WS_CHAT_REDIS_URL") as refused:
        Settings.from_environment({"WS_CHAT_REDIS_URL": "http://secret@host"})
    assert "secret" not in str(refused.value)
