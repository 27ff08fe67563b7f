"""Soak of several replicas on one Redis, at most minutes long: `make soak-replicas`.

First connections that break at random, each of which goes on at another replica; then replicas that are killed; then
the commands that Redis gets. It ends with a status other than 0 at the first delta that is lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop
from load.soak import ARGUMENTS, HELLO, TEXT, answer
from load.soak_mixed import check
from support.dropping import DroppingProxy
from support.replicas import SHARD, Cluster, Counting, Reading, cluster, counted
from support.waiting import until

from ws_chat.client import backoff, connect
from ws_chat.testing import Pause, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

DOORS = ("websocket", "sse")
LOST_WITHIN = 10.0
"""Seconds in which every reader is told that a replica was killed."""
RETENTION = 8
"""Seconds, so that it can be waited for."""
RATE = 8
"""Deltas per second of what runs when a replica is killed."""
TOGETHER = 25
"""How many are started at once."""
BOUND = 50
"""Commands per second and replica."""


def slowly(reply: Reply, seconds: float) -> Reply:
    """Let an answer take its time, so that it is followed while it runs."""
    pause = Pause(seconds / len(reply.steps))
    return Reply([step for read in reply.steps for step in (read, pause)])


@contextlib.asynccontextmanager
async def site(replicas: int = 2, workers: int = 1, *, held: bool = False) -> AsyncIterator[tuple[Counting, Cluster]]:
    """Run an upstream, and replicas in front of it, until the block ends.

    `held`: the leases of replicas do not lapse by themselves, but as soon as it is known which one is dead; and what
    has ended is kept. So a slow machine does the same as a fast one.
    """
    settings = {"WS_CHAT_RETENTION": str(600 if held else RETENTION), "WS_CHAT_RESUME_WINDOW": "600"}
    async with Counting() as fake, cluster(fake.base_url, replicas, workers, held=held, **settings) as them:
        yield fake, them


async def drops(
    fake: Counting,
    them: Cluster,
    generations: int,
    seed: int,
    readers: int = 16,
    seconds: float = 2.0,
    size: int = 2000,
) -> None:
    """Let so many generations be read, half of them over each door, while each connection breaks at a random byte.

    An answer takes `seconds`, and a connection holds for `size` bytes, both more or less.
    """
    backoff.FIRST_PAUSE, backoff.LONGEST_PAUSE = 0.005, 0.05
    chance = random.Random(seed)
    began = time.monotonic()
    left, dropped, done = generations, 0, Counter[str]()

    async def over_websocket(url: str) -> None:
        async with connect(url, patience=600) as client:
            reply, last = client.ask(HELLO), 0
            async for frame in reply:
                check(frame["seq"] > last, "seq rises")
                last = frame["seq"]
            check(reply.text == TEXT, "the text is the same")
            check([call["function"]["arguments"] for call in reply.tool_calls] == [ARGUMENTS], "so are its calls")
            check((reply.status, reply.seq) == ("completed", last + 1), "and its end")

    async def over_sse(port: int, generation_id: str) -> None:
        reading = Reading(generation_id, "hi", [port])
        await reading.read("sse")
        assert reading.end
        check(
            (reading.text, reading.arguments) == (TEXT, ARGUMENTS),
            f"an event stream is the same: {len(reading.text)} characters, {reading.seq} deltas, {reading.end}",
        )
        check((reading.end["type"], reading.end["seq"]) == ("done", reading.seq + 1), f"with an end: {reading.end}")

    async def read(place: int, ports: list[int]) -> None:
        nonlocal left, dropped
        proxy = DroppingProxy(ports, lambda: 100 + int(chance.expovariate(1 / size)))
        await proxy.start()
        door = DOORS[place % 2]
        while left > 0:
            left -= 1
            fake.default = slowly(answer(chance), chance.uniform(0, 2 * seconds))
            if door == "websocket":
                await over_websocket(proxy.url)
            else:
                await over_sse(int(proxy.url.rpartition(":")[2]), f"r{left}")
            done[door] += 1
        dropped += proxy.drops
        await proxy.stop()

    async with asyncio.TaskGroup() as group:
        for place in range(readers):
            ports = them.ports if place % 4 < 2 else them.ports[::-1]
            group.create_task(read(place, ports))
    check(len(fake.requests) == generations, f"each was paid for once: {len(fake.requests)} of {generations}")
    print(
        f"{generations} generations ({dict(done)}), {dropped} dropped connections, each resumed on the other replica, "
        f"{time.monotonic() - began:.0f} s (seed {seed}): 0 lost, 0 doubled",
        flush=True,
    )


@dataclass
class Followed:
    """A generation, its readers (the first has asked for it), and what Redis had of it when a replica was killed."""

    count: int
    readers: list[Reading]
    replica: str = ""
    logged: str | None = None
    """None: it had ended."""


async def killed(
    fake: Counting, them: Cluster, generations: int, seed: int, followers: int = 1, longest: float = 12.0
) -> None:
    """Kill one of the replicas (or workers) while so many generations run, and look at what every reader is told."""
    chance = random.Random(seed)
    requests = len(fake.requests)
    async with asyncio.TaskGroup() as reading:
        followed = await begin(generations, chance, them, followers, longest, reading)
        before = await them.names()
        check(len(before) == len(them.replicas) * them.workers, f"all are known: {before}")
        killed_at = await kill(them)
        silent = await them.silent(before) if them.held else None
        await look(them, followed, silent)
        if silent:
            await them.redis.delete(f"{SHARD}lease:{silent}")
        dead = await until(lambda: gone(them, before), "the dead one to be forgotten")
        fake.go.set()
        lost = [one for one in followed if one.replica in dead and one.logged is not None]
        check(len(dead) == 1 and bool(lost), f"one is dead, with {len(lost)} generations")
        await ended(lost)
        within = None if them.held else LOST_WITHIN
        ahead = [judge(one, reader, killed_at, them.workers, within) for one in lost for reader in one.readers]
        late = await again(them, lost)
        slowest = max(reader.ended_at for one in lost for reader in one.readers) - killed_at
        await ended(followed)
        for one in followed:
            if one not in lost:
                check(
                    all(reader.text == counted(one.count) for reader in one.readers), "what did not run there is whole"
                )
                check(all(reader.end["type"] == "done" for reader in one.readers), "and done")  # type: ignore[index]
        took = await nothing_left(them)
        sizes = [await size(them.redis, key) for key in await them.redis.keys(f"{SHARD}journal:*")]
        check(len(fake.requests) - requests == generations, "each was paid for once")
        readers = [reader for one in followed for reader in one.readers]
        refusals = sum(len(reader.refusals) for reader in readers)
    print(
        f"1 of {len(them.replicas)} replicas (workers: {them.workers}) killed under {generations} generations, "
        f"{len(readers)} readers (seed {seed}): {len(lost)} lost, {generations - len(lost)} whole; told in "
        f"{slowest:.1f} s, {refusals} times to try again; {sum(ahead)} of {len(ahead)} readers had seen more than was "
        f"logged; {late} read it once more; {took:.1f} s later Redis holds only what belongs to the living: "
        f"journals of {', '.join(sizes)}",
        flush=True,
    )


async def begin(
    generations: int, chance: random.Random, them: Cluster, followers: int, longest: float, group: asyncio.TaskGroup
) -> list[Followed]:
    """Start generations on all replicas, each with followers on the next ones; return when all are read."""
    followed: list[Followed] = []

    def add(place: int, ask: str | None, turn: int) -> Reading:
        ports = them.ports[turn % len(them.ports) :] + them.ports[: turn % len(them.ports)]
        reader = Reading(f"k{place}", ask, ports)
        group.create_task(reader.read(DOORS[(place // 2 + turn) % 2]))
        return reader

    for some in range(0, generations, TOGETHER):
        new = range(some, min(some + TOGETHER, generations))
        counts = [chance.randint(RATE, int(RATE * longest)) for _ in new]
        # Half of them end only after the kill, however long it takes to get there.
        asks = [f"{count}/{RATE}{'/wait' if place // 2 % 2 else ''}" for place, count in zip(new, counts, strict=True)]
        followed += [
            Followed(count, [add(place, ask, place)]) for place, count, ask in zip(new, counts, asks, strict=True)
        ]
        for place in new:
            await followed[place].readers[0].begun.wait()
            followed[place].readers += [add(place, None, place + follower) for follower in range(1, followers + 1)]
    for one in followed:
        for reader in one.readers:
            await reader.begun.wait()
    return followed


async def kill(them: Cluster) -> float:
    """Kill a replica, or the first worker of one; return the time."""
    replica = them.replicas[0]
    started = re.findall(r"Started server process \[(\d+)\]", replica.log)
    pid = int(started[0]) if them.workers > 1 else replica.process.pid
    os.kill(pid, signal.SIGKILL)
    return asyncio.get_running_loop().time()


async def gone(them: Cluster, before: set[str]) -> set[str]:
    """Return which of the replicas that there were are not known any more."""
    return before - await them.names()


async def look(them: Cluster, followed: list[Followed], dead: str | None) -> None:
    """See what Redis has of each generation, when all that the dead one had sent has arrived."""
    journals: dict[str, dict[str, dict[int, str]]] = {}
    steady = False
    while not steady:
        await asyncio.sleep(0.1)  # what arrives meanwhile is seen, and looked at once more
        names = await them.names()
        seen = {name: await them.journalled(name) for name in names}
        steady = any(seen[name] == journals.get(name) and seen[name] for name in (names if dead is None else {dead}))
        journals = seen
    for one in followed:
        name = f"{SHARD}named/anonymous/{one.readers[0].id}"
        replica, terminal = await them.redis.hmget(name, "replica", "terminal")
        if replica and not terminal:
            one.replica = replica.decode()
            pieces = journals[one.replica].get(one.readers[0].id, {})
            check(sorted(pieces) == list(range(1, len(pieces) + 1)), f"the journal has all of {one.readers[0].id}")
            one.logged = "".join(pieces[seq] for seq in sorted(pieces))


def judge(one: Followed, reader: Reading, killed_at: float, workers: int, within: float | None) -> bool:
    """Check what the reader of a lost generation was told; return whether it had seen more than was logged."""
    assert reader.end
    assert one.logged is not None
    check(reader.lost and reader.end["error"]["retryable"], f"it is told: {reader.end}")
    took = reader.ended_at - killed_at
    check(within is None or took < within, f"in time, not after {took:.1f} s")
    check(counted(one.count).startswith(reader.text), "what it has is a beginning")
    logged = one.logged.count("\n")
    if reader.seq > logged:
        check(reader.text.startswith(one.logged), "all that was logged, and more")
        check(reader.end.get("seq") == logged + 1, "it has the end of all other readers")
        check(workers > 1 or reader is one.readers[0], "which only the readers of the dead one can have seen")
        return True
    check(reader.text == one.logged, f"exactly what was logged: {reader.seq} instead of {logged}")
    check(reader.end.get("seq") == logged + 1, f"and then its end: {reader.end}")
    return False


async def ended(followed: list[Followed]) -> None:
    """Wait until every reader of these has been told an end."""
    await until(lambda: all(reader.end for one in followed for reader in one.readers), "every reader to be told an end")


async def again(them: Cluster, lost: list[Followed]) -> int:
    """Read what was lost once more, from its start, at a replica that lives."""
    late = [Reading(one.readers[0].id, None, them.ports[::-1]) for one in lost]
    async with asyncio.TaskGroup() as group:
        for place, reader in enumerate(late):
            group.create_task(reader.read(DOORS[place % 2]))
    for one, reader in zip(lost, late, strict=True):
        check(reader.text == one.logged and reader.lost, "it stays as it was told")
        check(all(reader.end == other.end for other in one.readers if "seq" in other.end), "to everybody")  # type: ignore[operator]
    return len(late)


async def nothing_left(them: Cluster) -> float:
    """Wait until Redis holds nothing but what belongs to those that live; return how many seconds it took."""
    began = time.monotonic()

    async def nothing() -> bool:
        return not await them.left()

    await until(nothing, "Redis to hold only what belongs to the living")
    return time.monotonic() - began


async def size(redis: Redis, key: bytes) -> str:
    return f"{await redis.xlen(key)} entries, {await redis.memory_usage(key, samples=0) // 1024} KB"


async def commands(generations: int, rates: list[int], seconds: float) -> None:
    """Count what each replica asks of Redis while generations run, each of them read at both replicas."""
    for rate in rates:
        async with Counting() as fake, cluster(fake.base_url, 2) as them, asyncio.TaskGroup() as group:
            ask = f"{int(rate * (seconds + 60))}/{rate}"
            turns = [them.ports[:: 1 if place % 2 else -1] for place in range(generations)]
            readers = [Reading(f"r{place}", ask, turn) for place, turn in enumerate(turns)]
            readers += [Reading(f"r{place}", None, turn[::-1]) for place, turn in enumerate(turns)]
            tasks = []
            for reader in readers:
                tasks.append(group.create_task(reader.read("websocket")))
                await reader.begun.wait()
            await asyncio.sleep(1)  # so that no command of the last start is counted
            before, seqs = await calls(them.redis), sum(reader.seq for reader in readers)
            await asyncio.sleep(seconds)  # for so long the commands are counted
            after, deltas = await calls(them.redis), (sum(reader.seq for reader in readers) - seqs) / 2
            for task in tasks:
                task.cancel()
        each = {name: (count - before[name]) / seconds / 2 for name, count in after.items() if count > before[name]}
        each.pop("info", None)
        told = ", ".join(f"{name} {count:.1f}" for name, count in sorted(each.items(), key=lambda item: -item[1]))
        total = sum(each.values())
        print(f"{deltas / seconds:.0f} deltas a second: {total:.1f} commands a second and replica ({told})", flush=True)
        check(5 < total <= BOUND, f"{total:.1f} commands a second and replica")


async def calls(redis: Redis) -> Counter[str]:
    statistics = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): figures["calls"] for name, figures in statistics.items()})


async def all_of_it(seed: int, generations: int, running: int) -> None:
    """Do each in turn."""
    async with site() as (fake, them):
        await drops(fake, them, generations, seed)
        await killed(fake, them, running, seed)
    async with site(3) as (fake, them):
        await killed(fake, them, running, seed, followers=2)
    async with site(1, workers=2) as (fake, them):
        await killed(fake, them, running, seed)
    await commands(30, [10, 100], 5.0)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200, help="that are read over broken connections")
    parser.add_argument("--running", type=int, default=300, help="when a replica is killed")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    uvloop.run(all_of_it(options.seed, options.generations, options.running))


if __name__ == "__main__":
    main()
