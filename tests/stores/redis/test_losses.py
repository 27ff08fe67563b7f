"""A Redis that loses something, answers that are lost, replicas that die: what every replica shows stays one and the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from support.dropping import DroppingProxy
from support.processes import redis_server
from support.waiting import until

from ws_chat import ChatError
from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.errors import LOST
from ws_chat.protocol.frames import DIGEST_SIZE, Done, Failed, Start, encode
from ws_chat.stores.base import GenerationKey, LogExistsError
from ws_chat.stores.redis.keys import LOSE, UNDO, Names, cancels, lease_key, slots
from ws_chat.stores.redis.log import Copy
from ws_chat.stores.redis.store import RedisStore

pytestmark = pytest.mark.anyio

A, B, C = (encode_delta({"content": letter}) for letter in "abc")
REQUEST = bytes(DIGEST_SIZE) + b'[{"role":"user","content":"hi"}]'


def key(generation_id: str) -> GenerationKey:
    return GenerationKey("anonymous", generation_id, named=True)


def done(generation_id: str, seq: int) -> Done:
    return Done(generation_id, seq, "completed", "stop", "m", None, {"ttft_ms": None, "total_ms": 1.0})


def stay(*_: object) -> None:
    """Read a log."""


def deltas(log) -> list[bytes]:
    return list(log.after(0, 100))


class Replica:
    """A store, with generations that end when they are cancelled."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore([url])
        self.logs: dict[GenerationKey, object] = {}
        self.read_elsewhere: set[GenerationKey] = set()

    def cancel(self, generation: GenerationKey) -> bool:
        log = self.logs.pop(generation, None)
        if log and not log.ending:
            log.end(Done(generation.id, log.last + 1, "cancelled", None, "m", None, {"ttft_ms": None, "total_ms": 1.0}))
        return log is not None

    def add_remote_reader(self, generation: GenerationKey) -> None:
        self.read_elsewhere.add(generation)

    def remove_remote_reader(self, generation: GenerationKey) -> None:
        self.read_elsewhere.remove(generation)

    async def run(self, generation_id: str, *said: bytes, epoch: str = "e1"):
        """Start a generation that has said something, and wait until Redis has it."""
        log = await self.store.create(key(generation_id), Start(generation_id, 0, "m", epoch), REQUEST)
        self.logs[key(generation_id)] = log
        if said:
            log.append(list(said))
            await until(lambda: log.stored == log.last, f"{generation_id} to be in Redis")
        return log

    async def read(self, generation_id: str):
        """Return a log as soon as this replica is sure about it."""
        while True:
            try:
                return await self.store.get(key(generation_id))
            except ChatError as error:
                if error.info.code != "overloaded":
                    raise
                await asyncio.sleep(0.01)

    async def ended(self, generation_id: str):
        """Return a log with its terminal frame."""
        log = await self.read(generation_id)
        log.watch(stay)
        await until(lambda: log.terminal, f"the end of {generation_id}")
        log.unwatch(stay)
        return log

    async def die(self) -> None:
        """Stop doing anything, without a word."""
        while self.store._tasks:
            for task in self.store._tasks:
                task.cancel()
            _, self.store._tasks = await asyncio.wait(self.store._tasks, timeout=0.1)


@pytest.fixture(scope="module")
async def server():
    async with redis_server() as server:
        yield server


@pytest.fixture
async def redis(server):
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def start(server, redis, windows):
    """Return a function that starts a replica, on that Redis by default."""
    for name in ("RENEWAL", "WRITE_INTERVAL", "READ_INTERVAL"):
        windows(f"redis.store.{name}", 0.02)
    windows("redis.store.STEADY", 0.0)
    replicas = []

    async def start(url: str = server.url) -> Replica:
        replica = Replica(url)
        await replica.store.open(replica)
        replicas.append(replica)
        return replica

    yield start
    for replica in replicas:
        for log in list(replica.logs.values()):
            if not log.ending and not log.terminal:
                log.end(Failed(log.key.id, log.last + 1, LOST))
        await replica.store.close()


@pytest.fixture
async def pair(start):
    return await start(), await start()


@contextlib.asynccontextmanager
async def failover():
    """A Redis behind a proxy, and what lets a secondary take over that lacks what is written from now on."""
    async with redis_server() as first, redis_server() as second:
        proxy = DroppingProxy(first.port)
        await proxy.start()
        async with Redis.from_url(second.url) as redis:
            await redis.replicaof("127.0.0.1", first.port)

            async def cut() -> None:
                async def replicating() -> bool:
                    return (await redis.info("replication"))["master_link_status"] == "up"

                await until(replicating, "the second Redis to replicate the first")
                async with Redis.from_url(first.url) as old:
                    await old.set("last", "1", ex=60)
                    await old.wait(1, 0)
                await redis.replicaof("NO", "ONE")

            async def take_over() -> None:
                proxy.lead_to(second.port)
                await proxy.pull()
                await proxy.plug()

            try:
                yield f"redis://127.0.0.1:{proxy.port}/0", cut, take_over
            finally:
                await proxy.stop()


async def hold_for_long(windows, *replicas: Replica) -> None:
    """Let a loss hold requests up until the test ends that, once no renewal with the window before is on its way."""
    windows("redis.connection.HOLD_TTL", 60_000)
    for replica in (*replicas, *replicas):
        await replica.store._renew()


async def hold_back(monkeypatch, replica: Replica, *, writes: bool, looks: bool) -> asyncio.Event:
    """Let a replica write nothing, or renew and look at nothing, until the event is set."""
    go = asyncio.Event()
    held = [(replica.store._writer, "_cancel")] * writes + [(replica.store, "_renew")] * looks
    for part, name in held:
        waits, work = asyncio.Event(), getattr(part, name)

        async def late(work=work, waits=waits) -> None:
            waits.set()
            await go.wait()
            await work()

        monkeypatch.setattr(part, name, late)
        await waits.wait()
    return go


async def test_what_a_failover_lost_is_written_again_and_never_unknown(start, windows):
    async with failover() as (url, cut, take_over):
        one, other = await start(url), await start(url)
        running = await one.run("running", A)
        ending = await one.run("ending", A)
        await cut()
        windows("redis.connection.HOLD_TTL", 60_000)
        new = await one.run("new", A)
        running.append([B])
        ending.end(done("ending", 2))
        await until(lambda: running.stored == 2 and ending.terminal, "the first Redis to have all of it")
        await take_over()
        for generation_id in ("running", "ending", "new"):
            with pytest.raises((ChatError, LogExistsError)):
                await other.store.create(key(generation_id), Start(generation_id, 0, "m", "e2"), REQUEST)
        assert deltas(await other.read("new")) == [A]
        assert (await other.ended("ending")).terminal == done("ending", 2)
        copy = await other.read("running")
        copy.watch(stay)
        running.append([C])
        await until(lambda: copy.last == 3, "the copy to be whole")
        assert deltas(copy) == [A, B, C]
        new.end(done("new", 2))
        assert (await other.ended("new")).terminal == done("new", 2)


async def test_a_write_behind_what_a_failover_lost_is_no_gap_for_readers(start, windows, monkeypatch):
    """The owner writes to the new Redis before it knows of it."""
    async with failover() as (url, cut, take_over):
        one, other = await start(url), await start(url)
        log = await one.run("r1", A)
        copy = await other.read("r1")
        copy.watch(stay)
        await cut()
        log.append([B])
        await until(lambda: log.stored == 2, "the first Redis to have it")
        await until(lambda: copy.last == 2, "and the copy")
        go = await hold_back(monkeypatch, one, writes=False, looks=True)
        await take_over()
        log.append([C])
        await until(lambda: log.stored == 3, "the second Redis to have that, but not what is before it")
        log.end(done("r1", 4))
        await until(lambda: log.terminal, "the end to be written, too")
        late = await (await start(url)).read("r1")
        assert (deltas(late), late.terminal) == ([A], None)
        late.watch(stay)
        go.set()
        for each in (copy, late):
            await until(lambda each=each: each.terminal, "the end of a copy")
            assert (deltas(each), each.terminal) == ([A, B, C], done("r1", 4))


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_redis_that_lost_everything_gets_it_again(restarts, server, redis, pair, windows):
    one, other = pair
    running, ended = await one.run("running", A), await one.run("ended", A)
    ended.end(done("ended", 2))
    await until(lambda: ended.terminal, "the end")
    copy = await other.read("running")
    copy.watch(stay)
    await hold_for_long(windows, one, other)
    windows("redis.store.STEADY", 600.0)  # one that reconnects late is not gone
    if restarts:
        await server.stop()
        await server.start()
    else:
        await redis.flushall()
    with pytest.raises(ChatError, match=r"restored|reached"):
        await other.store.get(key("unknown"))
    for generation_id in ("running", "ended"):
        with pytest.raises((ChatError, LogExistsError)):
            await other.store.create(key(generation_id), Start(generation_id, 0, "m", "e2"), REQUEST)
        assert (await other.read(generation_id)).start.epoch == "e1"
    running.append([B])
    running.end(done("running", 3))
    await until(lambda: copy.terminal, "the end of the copy")
    assert (deltas(copy), copy.terminal) == ([A, B], done("running", 3))
    assert (await other.ended("ended")).terminal == done("ended", 2)

    async def over() -> bool:
        """Remove the hold, as it expires; a log that is in doubt sets it again."""
        await other.store._link.call(running.slot, "DEL", running.slot.keys[1])
        with contextlib.suppress(ChatError):
            return await other.store.get(key("unknown")) is None
        return False

    await until(over, "the hold to be over")
    assert one.logs.keys() == {key("running"), key("ended")}, "none was cancelled"


async def test_an_owner_that_was_replaced_meanwhile_ends_for_all_its_readers(redis, pair, monkeypatch):
    """It had its time, and another replica has started the id again."""
    one, other = pair
    log = await one.run("r1", A)
    copy = await other.read("r1")
    copy.watch(stay)
    go = await hold_back(monkeypatch, one, writes=True, looks=True)
    await redis.flushall()
    while await other.read("r1") is not None:
        pass
    second = await other.run("r1", B, epoch="e2")
    log.append([C])
    go.set()
    await until(lambda: log.terminal and copy.terminal, "both to end")
    assert log.terminal.error == copy.terminal.error == LOST
    assert copy.terminal.seq == log.terminal.seq == copy.last + 1
    assert deltas(copy) in ([A], [A, C])
    assert (await one.read("r1")).start.epoch == "e2"
    assert (deltas(await one.read("r1")), second.terminal) == ([B], None)


async def test_when_redis_and_the_owner_are_lost_the_copy_counts(redis, pair, start):
    one, other = pair
    await one.run("r1", A)
    copy = await other.read("r1")
    copy.watch(stay)
    await one.die()
    await redis.flushall()
    await until(lambda: copy.terminal, "the end of the copy")
    late = await (await start()).ended("r1")
    assert deltas(late) == deltas(copy) == [A]
    assert late.terminal == copy.terminal == Failed("r1", 2, LOST)


@pytest.mark.parametrize("at", ["deltas", "end"])
async def test_a_write_whose_answer_was_lost_is_done_once(at, pair, monkeypatch):
    one, other = pair
    log = await one.run("r1", A)
    link, lost = one.store._link, []
    pipeline = link.pipeline

    async def lossy(commands):
        answers = await pipeline(commands)
        if any(command[0] == "XADD" for command in commands) and len(lost) < 2:
            lost.append(commands)
            return [RedisConnectionError("lost")] * len(commands)
        return answers

    monkeypatch.setattr(link, "pipeline", lossy)
    log.append([B])
    if at == "end":
        log.end(done("r1", 3))
    await until(lambda: len(lost) == 2 and log.stored == 2, "Redis to confirm it")
    if at == "deltas":
        log.end(done("r1", 3))
    copy = await other.ended("r1")
    await until(lambda: log.terminal, "the end")
    assert (deltas(copy), copy.terminal, log.terminal) == ([A, B], done("r1", 3), done("r1", 3))


async def test_a_create_whose_answer_was_lost_leaves_nothing(redis, pair, monkeypatch):
    one, other = pair
    link, sent = one.store._link, []
    run = link.run

    async def lossy(slot, script, keys, *arguments):
        answer = await run(slot, script, keys, *arguments)
        if len(keys) == 4:
            sent.append((slot, script, keys, arguments))
            monkeypatch.setattr(link, "run", run)
            raise ChatError("overloaded", "lost", retry_after=1)
        return answer

    monkeypatch.setattr(link, "run", lossy)
    with pytest.raises(ChatError):
        await one.run("r1")
    late = await other.read("r1")  # which may have come before it was undone
    assert await one.read("r1") is None
    await run(sent[0][0], sent[0][1], sent[0][2], *sent[0][3])
    assert await one.read("r1") is None, "the create was carried out once more, late"
    if late:
        late.watch(stay)
        await until(lambda: late.fault, "its reader to be told to try again")
    log = await other.run("r1", B, epoch="e2")
    slot, name = one.store._place(key("r1"))
    first = Names.of(slot, name, f"e1 {one.store.replica}".encode())
    await run(slot, UNDO, (first.pointer, first.stream), first.value, 60_000)
    assert deltas(await one.read("r1")) == [B], "nor does it concern another one that it is undone late"
    assert log.terminal is None


async def test_a_cancel_that_was_acknowledged_is_not_lost(redis, pair, monkeypatch):
    one, other = pair
    log = await one.run("r1", A)
    go = await hold_back(monkeypatch, one, writes=True, looks=False)
    await other.store.cancel(key("r1"))
    await redis.delete(cancels(one.store.replica))
    go.set()
    await until(lambda: log.terminal, "the end")
    assert log.terminal.status == "cancelled"
    await until(lambda: not other.store._follower._copies, "no more to be asked for")

    async def carried_out() -> bool:
        return not await redis.exists(cancels(one.store.replica))

    await until(carried_out, "the cancels to be carried out")


async def test_a_lease_that_is_missed_once_kills_nothing(redis, pair):
    one, other = pair
    log = await one.run("r1", A)
    copy = await other.read("r1")
    copy.watch(stay)
    await until(lambda: one.store.replica in other.store._follower._leases, "a look")
    lease = other.store._follower._leases[one.store.replica]
    for _ in range(5):
        await redis.delete(lease_key(one.store.replica))
        rounds = lease.rounds
        await until(lambda rounds=rounds: lease.rounds > rounds + 2, "more looks")
    assert (copy.terminal, log.terminal) == (None, None)


async def test_generations_of_a_dead_owner_end_for_all_and_it_adds_nothing(redis, pair, start):
    one, other = pair
    third = await start()
    log = await one.run("r1", A)
    copies = [await replica.read("r1") for replica in (other, third)]
    for copy in copies:
        copy.watch(stay)
    await one.die()
    log.append([B])  # shown to its own readers, not written
    await redis.delete(lease_key(one.store.replica))
    await until(lambda: all(copy.terminal for copy in copies), "both copies to end")
    await one.store._writer.write()
    assert log.terminal == Failed("r1", 2, LOST)
    for late in (*copies, await other.ended("r1"), await one.ended("r1")):
        assert (deltas(late), late.terminal) == ([A], log.terminal)


async def test_copies_that_have_more_than_a_redis_that_lost_its_last_writes_show_the_same_end(redis, pair, start):
    one, other = pair
    log = await one.run("r1", A)
    copy = await other.read("r1")
    copy.watch(stay)
    log.append([B, C])
    await until(lambda: copy.last == 3, "the copy to have all")
    await one.die()
    assert await redis.xdel(log.names.stream, "1-3") == 1
    third = await start()
    less = await third.read("r1")
    less.watch(stay)
    await redis.delete(lease_key(one.store.replica))
    await until(lambda: copy.terminal and less.terminal, "both copies to end")
    assert (deltas(less), deltas(copy)) == ([A], [A, B, C])
    assert copy.terminal == less.terminal == (await other.ended("r1")).terminal == Failed("r1", 2, LOST)


async def test_a_thousand_generations_of_a_dead_owner_take_a_few_commands(redis, pair, monkeypatch):
    one, other = pair
    for number in range(1000):
        await one.run(f"r{number}")
    copies = [await other.read(f"r{number}") for number in range(1000)]
    for copy in copies:
        copy.watch(stay)
    await one.die()
    link, calls = other.store._link, []
    pipeline = link.pipeline

    async def counted(commands):
        if any(LOSE in command for command in commands):
            calls.append(len(commands))
        return await pipeline(commands)

    monkeypatch.setattr(link, "pipeline", counted)
    await redis.delete(lease_key(one.store.replica))
    await until(lambda: all(copy.terminal for copy in copies), "all of them to end")
    assert 1 <= len(calls) <= 4


async def test_a_log_that_cannot_be_written_blocks_no_other(redis, pair):
    one, other = pair
    bad = await one.run("bad")
    await redis.delete(bad.names.stream)
    await redis.set(bad.names.stream, "not a stream", ex=60)
    bad.append([A])
    good = await one.run("good", A)
    good.end(done("good", 2))
    assert (await other.ended("good")).terminal == done("good", 2)
    await redis.delete(bad.names.stream)
    bad.end(done("bad", 2))
    copy = await other.ended("bad")
    assert (deltas(copy), copy.terminal) == ([A], done("bad", 2))


async def test_a_reader_elsewhere_counts_and_is_forgotten(redis, pair):
    one, other = pair
    await one.run("r1", A)
    copy = await other.read("r1")
    copy.watch(stay)
    await until(lambda: one.read_elsewhere, "the reader to count")
    await redis.flushall()
    await until(lambda: not one.read_elsewhere, "it to be forgotten with Redis")
    copy.renew_at = 0.0
    await until(lambda: one.read_elsewhere, "it to count again")
    copy.unwatch(stay)
    await until(lambda: not other.store._follower._copies, "the copy to be left")
    await redis.delete(copy.names.read)  # as it expires
    await until(lambda: not one.read_elsewhere, "it to count no more")


async def test_a_resume_at_a_stored_delta_does_not_depend_on_the_next_read(start, windows):
    windows("redis.store.READ_INTERVAL", 600.0)
    one, other = await start(), await start()
    log = await one.run("r1", A)
    assert deltas(await other.read("r1")) == [A]
    log.append([B])
    await until(lambda: log.stored == 2, "it to be in Redis")
    assert deltas(await other.store.get(key("r1"), after=2)) == [A, B]


async def test_every_key_expires(redis, pair):
    one, other = pair
    log = await one.run("r1", A)
    early = await one.run("early")
    early.end(Failed("early", 1, LOST))
    copy = await other.read("r1")
    copy.watch(stay)
    await until(lambda: one.read_elsewhere and early.terminal, "all kinds of keys")
    kinds = set()
    while log.terminal is None:
        if len(kinds) == 5:
            await other.store.cancel(key("r1"))
        for name in await redis.keys():
            assert await redis.pttl(name) != -1, name
            kinds.add(name.decode().partition("}:")[2].partition("/")[0])
    assert kinds >= {"marker", "lease", "id", "log", "read"}


async def test_a_long_generation_is_written_once(redis, pair):
    one, _ = pair
    log = await one.run("r1")
    for _ in range(20):
        log.append([A, B])
        await until(lambda: log.stored == log.last, "it to be in Redis")
    entries = await redis.xrange(log.names.stream, "1-0")
    assert [len(fields[b"deltas"].split(b"\n")) for _, fields in entries] == [2] * 20


async def test_one_that_failed_early_keeps_its_error_and_its_digest(redis, pair, windows):
    one, other = pair
    log = await one.run("r1")
    log.end(Failed("r1", 1, LOST))
    await until(lambda: log.terminal, "the end")
    copy = await other.read("r1")
    assert (copy.request, copy.terminal) == (REQUEST[:DIGEST_SIZE], log.terminal)
    await hold_for_long(windows, one, other)
    await redis.flushall()
    copy = await other.ended("r1")
    assert (copy.request, copy.terminal) == (REQUEST[:DIGEST_SIZE], log.terminal)


async def test_a_request_can_be_replaced(redis, pair, windows):
    one, other = pair
    windows("redis.connection.HOLD_TTL", 60_000)
    log = await one.run("r1")
    await other.read("r1")
    log.replace_request(bytes(DIGEST_SIZE) + b"[1]")
    log.append([A])
    log.end(done("r1", 2))
    await until(lambda: log.terminal, "the end")
    assert not await redis.exists(log.slot.keys[1]), "nothing was lost, so nobody has to wait"
    other.store._follower._copies.clear()
    copy = await other.ended("r1")
    assert (copy.request, deltas(copy)) == (bytes(DIGEST_SIZE) + b"[1]", [A])


def copied() -> Copy:
    return Copy(slots(1)[0], key("r1"), None, Start("r1", 0, "m"), REQUEST, lambda _: None)


def entry(entry_id: str, **fields: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    return entry_id.encode(), {name.encode(): value for name, value in fields.items()}


def test_entries_may_overlap():
    copy = copied()
    copy.take([entry("1-2", deltas=A + b"\n" + B), entry("1-3", deltas=A + b"\n" + B + b"\n" + C)])
    copy.take([entry("1-3", deltas=B + b"\n" + C)])
    assert deltas(copy) == [A, B, C]


@pytest.mark.parametrize("abandoned", [False, True])
def test_what_stands_behind_a_gap_is_not_shown(abandoned):
    copy = copied()
    copy.abandoned = abandoned
    behind = [entry("1-3", deltas=C), entry("2-0", terminal=encode(done("r1", 4)))]
    copy.take([entry("1-1", deltas=A), *behind])
    assert deltas(copy) == [A]
    assert copy.terminal == (Failed("r1", 2, LOST) if abandoned else None)
    if not abandoned:
        copy.take([entry("1-3", deltas=A + b"\n" + B + b"\n" + C), behind[1]])
        assert (deltas(copy), copy.terminal) == ([A, B, C], done("r1", 4))
