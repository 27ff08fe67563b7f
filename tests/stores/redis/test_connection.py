"""What Redis may be: a cluster, behind TLS and a password, failing over, out of memory, and named wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from support.processes import ROOT, free_port, need, output, redis_cluster, redis_server, take_over
from support.service import HELLO, Nothing, events, joined
from support.waiting import until

from ws_chat import Settings, SettingsError, create_app
from ws_chat.stores.redis.store import RedisStore
from ws_chat.testing import Reply, Wait, text

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("windows")]


async def until_available(*services, expected: bool = True) -> None:
    """Wait until replicas have found Redis, or missed it."""
    for service in services:
        store = service.relay._store
        await until(lambda store=store: store.available == expected, f"{service.url} to have found Redis: {expected}")


async def followed(service, generation_id: str) -> list[dict]:
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.get(f"{service.stream_url}/{generation_id}?format=frames")
    assert response.status_code == 200, response.text

    return [json.loads(event["data"]) for event in events(response.content)]


def slowly(*contents: str) -> tuple[Reply, asyncio.Event]:
    go = asyncio.Event()
    first, *rest = text(*contents)[1:]
    return Reply([first, Wait(go), *rest]), go


@contextlib.asynccontextmanager
async def read_by_both(one, other, fake, generation_id: str):
    """Begin a generation of `abc` at one replica, read it at both; yield the sockets, and what lets it go on."""
    reply, go = slowly(*"abc")
    fake.reply(reply.steps)
    async with one.socket() as socket, other.socket() as elsewhere:
        await socket.send({"messages": HELLO, "id": generation_id})
        for reader in (socket, elsewhere):
            if reader is elsewhere:
                await elsewhere.send({"type": "resume", "id": generation_id})
            assert [(await reader.receive())["seq"], (await reader.receive())["content"]] == [0, "a"]
        yield (socket, elsewhere), go


async def test_a_cluster_goes_on_when_a_primary_dies(serve, fake):
    async with redis_cluster(spares=1) as nodes:
        urls = [node.url.replace("://", "+cluster://") for node in nodes[:3]]
        settings = {"redis_urls": urls, "requests_per_minute": 100}
        one, other = await serve(**settings), await serve(**settings)
        await until_available(one, other)
        for number in range(20):
            assert joined(await one.frames(id=f"r{number}")) == joined(await followed(other, f"r{number}")) == "Hello"
        for victim in nodes[:3]:
            async with Redis.from_url(victim.url) as redis:
                assert await redis.dbsize() > 3, "every node has work"
        async with read_by_both(one, other, fake, "r99") as (readers, go):
            await nodes[0].stop()
            await until_available(one, other, expected=False)
            await take_over(nodes[0], nodes)
            await until_available(one, other)
            go.set()
            for reader in readers:
                *tokens, done = await reader.until_end()
                assert (joined(tokens), done.get("status")) == ("bc", "completed"), done
        for number in range(20, 30):
            assert joined(await one.frames(id=f"r{number}")) == joined(await followed(other, f"r{number}")) == "Hello"
    # Without any node:
    await until_available(one, other, expected=False)
    assert joined(await one.frames()) == "Hello"
    assert joined(await one.frames(id="r29")) == "Hello", "what it has run itself"
    for response in (
        await one.post({"messages": HELLO, "id": "new"}),
        await other.post({"messages": HELLO, "id": "new"}),
    ):
        assert response.status_code == 503, response.text
        assert response.json()["error"]["code"] == "overloaded"


async def test_a_redis_that_loses_its_role_is_left_for_the_new_one(serve, fake, caplog):
    """Its name leads to another one then. Here both are behind one port: a proxy's."""
    caplog.set_level(logging.INFO, "ws_chat.redis")
    async with (
        redis_server() as first,
        redis_server() as second,
        moving(first) as (url, move),
        Redis.from_url(second.url) as redis,
    ):
        await redis.replicaof("127.0.0.1", first.port)

        async def replicating() -> bool:
            return (await redis.info("replication"))["master_link_status"] == "up"

        await until(replicating, "the second Redis to replicate the first")
        one, other = await serve(redis_urls=url), await serve(redis_urls=url)
        async with read_by_both(one, other, fake, "r1") as (readers, go), Redis.from_url(first.url) as old:
            await old.set("last", "1")
            await old.wait(1, 0)  # for the second to have all that the first has
            await redis.replicaof("NO", "ONE")
            await old.replicaof("127.0.0.1", second.port)
            move(second)  # what is connected stays so
            await until(lambda: caplog.text.count("lost something") == 2, "both replicas to find the second Redis")
            await until_available(one, other)
            go.set()
            for reader in readers:
                *tokens, done = await reader.until_end()
                assert (joined(tokens), done.get("status")) == ("bc", "completed"), done
        assert joined(await one.frames(id="r2")) == joined(await followed(other, "r2")) == "Hello"


@contextlib.asynccontextmanager
async def moving(server):
    """A port that leads to a Redis, and what lets later connections lead to another one."""
    target = [server]
    tasks = set()

    async def serve(reader, writer) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target[0].port)

        async def copy(source, sink) -> None:
            try:
                while data := await source.read(65536):
                    if sink.is_closing():
                        return
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.transport.abort()

        for task in (asyncio.create_task(copy(reader, back)), asyncio.create_task(copy(there, writer))):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield f"redis://127.0.0.1:{port}/0", lambda other: target.__setitem__(0, other)
    listening.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_out_of_memory_nothing_new_is_named_and_running_generations_go_on(serve, fake):
    async with redis_server("--maxmemory-policy", "noeviction") as server, Redis.from_url(server.url) as redis:
        one, other = await serve(redis_urls=server.url), await serve(redis_urls=server.url)
        await one.frames(id="r1")
        async with read_by_both(one, other, fake, "r2") as (readers, go):
            await redis.config_set("maxmemory", "1")
            response = await other.post({"messages": HELLO, "id": "r3"})
            assert response.status_code == 503, response.text
            assert response.json()["error"]["code"] == "overloaded"
            assert joined(await other.frames()) == "Hello", "what is not named works"
            assert joined(await followed(other, "r1")) == "Hello", "and what is there is read"
            for lease in await redis.keys("*:lease"):
                await redis.pexpire(lease, 300_000)

            async def renewed() -> bool:
                return all([await redis.pttl(lease) > 300_000 for lease in await redis.keys("*:lease")])

            await until(renewed, "both leases to be renewed all the same")
            go.set()
            assert (await readers[0].receive())["content"] == "b", "its own readers read on"
            await redis.config_set("maxmemory", "0")
            assert [joined(await reader.until_end()) for reader in readers] == ["c", "bc"]
        assert joined(await one.frames(id="r3")) == joined(await followed(other, "r3")) == "Hello"


@pytest.fixture
async def sentinel(tmp_path):
    """A port of Sentinel, which watches a Redis called `chat`; and that of its secondary."""
    async with redis_server("--requirepass", "secret") as first, contextlib.AsyncExitStack() as stack:
        options = ("--replicaof", "127.0.0.1", str(first.port), "--masterauth", "secret", "--requirepass", "secret")
        second = await stack.enter_async_context(redis_server(*options))
        port = free_port()
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor chat 127.0.0.1 {first.port} 1\nsentinel auth-pass chat secret\n"
            "sentinel down-after-milliseconds chat 600000\n"
        )
        program = [need("redis-sentinel"), str(configuration), "--port", str(port), "--bind", "127.0.0.1"]
        process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.DEVNULL)
        stack.push_async_callback(process.wait)
        stack.callback(process.kill)

        async def knows_both() -> bool:
            with contextlib.suppress(RedisConnectionError):
                async with Redis(port=port) as asked:
                    known = await asked.execute_command("SENTINEL", "REPLICAS", "chat")
                    return bool(known) and known[0][b"master-link-status"] == b"ok"
            return False

        await until(knows_both, "Sentinel to know the second Redis")
        yield port, second.port


async def test_sentinel_leads_to_the_new_primary(sentinel, serve, fake):
    port, second = sentinel
    url = f"redis+sentinel://:secret@127.0.0.1:{port}/chat/0"
    one, other = await serve(redis_urls=url), await serve(redis_urls=[url, url])
    async with read_by_both(one, other, fake, "r1") as (readers, go):
        async with Redis(port=port) as asked:
            await asked.execute_command("SENTINEL", "FAILOVER", "chat")

        async def promoted() -> bool:
            async with Redis(port=second, password="secret") as redis:
                return (await redis.info("replication"))["role"] == "master" and await redis.keys("*:lease")

        await until(promoted, "the replicas to find the second Redis")
        go.set()
        for reader in readers:
            *tokens, done = await reader.until_end()
            assert (joined(tokens), done.get("status")) == ("bc", "completed"), done


async def test_a_user_needs_only_these_permissions(serve, fake):
    """Those of docs/operations.md."""
    async with redis_server() as server:
        async with Redis.from_url(server.url) as redis:
            (rules,) = re.findall(r"ACL SETUSER chat (.*)", (ROOT / "docs/operations.md").read_text())
            await redis.execute_command("ACL", "SETUSER", "chat", *rules.split())
            await redis.execute_command("ACL", "SETUSER", "default", "off")
        url = server.url.replace("://", "://chat:a-long-password@")
        settings = {"redis_urls": url, "requests_per_minute": 100}
        one, other = await serve(**settings), await serve(**settings)
        async with read_by_both(one, other, fake, "r1") as (readers, go):
            await readers[1].send({"type": "cancel", "id": "r1"})
            for reader in readers:
                assert (await reader.until_end())[-1].get("status") == "cancelled"
            go.set()


@pytest.mark.parametrize("version", ["6.2.14", "5.0"])
async def test_a_redis_that_is_too_old_is_refused_at_the_start(version, shared, monkeypatch):
    async def info(_) -> dict:
        return {"redis_version": version}

    monkeypatch.setattr(Redis, "info", info)
    with pytest.raises(ValueError, match=f"WS_CHAT_REDIS_URL: Redis 7.0 or newer is needed, this one is {version}"):
        await RedisStore([shared.url]).open(Nothing())


async def test_a_policy_that_evicts_is_warned_of(shared, redis, caplog):
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    store = RedisStore([shared.url])
    await store.open(Nothing())
    assert "maxmemory-policy allkeys-lru" in caplog.text
    await store.close()


async def test_over_tls_with_a_password(serve, fake, tmp_path):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    files = ["-keyout", str(key), "-out", str(certificate)]
    new = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    assert (await output(*new))[0] == 0
    port = free_port()
    trusted = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no")
    async with redis_server("--tls-port", str(port), *trusted, "--requirepass", "p,ss"):
        url = f"rediss://:p%2Css@127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        settings = {"redis_urls": url, "requests_per_minute": 3}
        one, other = await serve(**settings), await serve(**settings)
        assert joined(await one.frames(id="r1")) == joined(await followed(other, "r1")) == "Hello"
        assert [(await other.post()).status_code for _ in range(3)] == [200, 200, 429]


async def test_many_at_once_share_a_few_connections(serve, fake):
    async with redis_server("--maxclients", "100") as server:
        one = await serve(redis_urls=server.url, requests_per_minute=100_000, max_generations_per_connection=300)
        async with one.socket() as socket:
            for number in range(150):
                await socket.send({"messages": HELLO, "id": f"r{number}"})
            ends = 0
            while ends < 150:
                frame = await socket.receive()
                assert frame["type"] != "error", frame
                ends += frame["type"] == "done"


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1/0?nonsense=1",
        "redis+cluster://127.0.0.1/0?nonsense=1",
        "redis+sentinel://127.0.0.1",
        "redis+sentinel://127.0.0.1/chat?nonsense=1",
        "redis://one,redis://two",
        "redis+cluster://one,redis://two",
        "redis://h:port",
        "http://secret@h",
    ],
)
def test_an_address_that_cannot_be_is_refused_at_the_start(url):
    with pytest.raises(SettingsError, match="WS_CHAT_REDIS_URL") as refused:
        create_app(Settings.from_environment({"WS_CHAT_REDIS_URL": url}))
    assert "secret" not in str(refused.value)
