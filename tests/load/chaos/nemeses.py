"""The nemeses: each injects a fault while the load runs, most of them repeatedly, and repairs it."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from load.chaos.site import Replica, Site

AWAY = 3.0
"""Seconds until a killed replica is started again."""
TAIL = 2.0
"""Seconds of writes that a secondary lacks when it is promoted too early."""


@dataclass(frozen=True)
class Nemesis:
    """A fault that is injected `pause` seconds after the load starts, and after each repair if it is to strike `often`."""

    strike: Callable[[Site, random.Random], Awaitable[None]]
    secondary: bool = False
    workers: int = 1
    clock: bool = False
    pause: float = 4.0
    often: bool = True
    load: Literal["mixed", "reuse", "crowd"] = "mixed"
    retention: float = 30.0


async def nothing(site: Site, chance: random.Random) -> None:
    await asyncio.sleep(1)


async def kill(site: Site, chance: random.Random) -> None:
    """Kill a replica, and start it again."""
    replica = chance.choice(site.replicas)
    await _kill(site, replica)
    await asyncio.sleep(AWAY)
    await replica.start()


async def _kill(site: Site, replica: Replica) -> None:
    site.happened("killed", replica)
    await replica.end(signal.SIGKILL)


async def kill_worker(site: Site, chance: random.Random) -> None:
    """Kill one of the workers of a replica, which then starts another one."""
    replica = chance.choice(site.replicas)
    site.happened("killed", replica)
    replica.kill_worker()
    await asyncio.sleep(AWAY)


async def stop(site: Site, chance: random.Random) -> None:
    """Suspend a replica for a moment, or for so long that it counts as dead."""
    await _stop(site, chance.choice(site.replicas), chance.choice([1.5, 5.0, 12.0]))


async def _stop(site: Site, replica: Replica, seconds: float) -> None:
    with site.fault("stopped", replica):
        replica.stopped = True
        replica.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        replica.send(signal.SIGCONT)
        replica.stopped = False


async def drain(site: Site, chance: random.Random) -> None:
    """Restart all replicas, one after the other, as a deploy does."""
    for replica in site.replicas:
        with site.fault("drained", replica):
            await replica.end(signal.SIGTERM)
        await replica.start()


async def restart(site: Site, chance: random.Random) -> None:
    """Kill Redis, and start it again with its data."""
    with site.fault("away"):
        await site.primary.stop()
        await asyncio.sleep(chance.uniform(0, 2))
        await site.primary.start()


async def empty(site: Site, chance: random.Random) -> None:
    """Kill Redis, and start it again without its data."""
    with site.fault("away"):
        await site.primary.stop()
        site.primary.empty()
        await asyncio.sleep(chance.uniform(0, 2))
        await site.primary.start()
    site.happened("lost all")


async def flush(site: Site, chance: random.Random) -> None:
    """Remove all data without closing connections."""
    async with site.redis() as redis:
        await redis.flushall()
    site.happened("lost all")


async def promote(site: Site, chance: random.Random) -> None:
    """Promote a secondary that lacks the last writes."""
    await _promote(site)


async def promote_kill(site: Site, chance: random.Random) -> None:
    """Promote a secondary that lacks the last writes, and kill a replica at the same time."""
    replica = chance.choice(site.replicas)
    await _promote(site, replica)
    await asyncio.sleep(AWAY)
    await replica.start()


async def _promote(site: Site, dead: Replica | None = None) -> None:
    if site.secondary is None:  # the last one has been promoted
        await site.replicate()
    assert site.replication
    site.replication.hold("up", "down")
    site.strike()
    await asyncio.sleep(TAIL)
    site.replication.cut = True
    site.replication.reset()
    site.replication.cut = False
    with site.fault("away"):
        if dead:
            await _kill(site, dead)
        await site.promote()
    site.happened("lost tail")


async def hang_3(site: Site, chance: random.Random) -> None:
    """Let Redis hang for 3 s."""
    await _hang(site, chance, 3)


async def hang_13(site: Site, chance: random.Random) -> None:
    """Let Redis hang for 13 s."""
    await _hang(site, chance, 13)


async def _hang(site: Site, chance: random.Random, seconds: float) -> None:
    """Suspend the process, or hold back all data to and from it."""
    with site.fault("away"):
        if chance.random() < 0.5:
            site.primary.pause()
            await asyncio.sleep(seconds)
            site.primary.pause(over=True)
        else:
            for replica in site.replicas:
                replica.proxy.hold("up", "down")
            await asyncio.sleep(seconds)
            for replica in site.replicas:
                replica.proxy.flow()


async def one_way(site: Site, chance: random.Random) -> None:
    """Discard the answers of Redis, which still executes all commands. For one replica or all, for a moment or longer."""
    replicas = chance.choice([site.replicas, [chance.choice(site.replicas)]])
    with site.fault("away") if replicas is site.replicas else site.fault("cut off", replicas[0]):
        for replica in replicas:
            replica.proxy.throw_away("down")
        await asyncio.sleep(chance.choice([1.0, 6.0, 12.0]))
        for replica in replicas:
            replica.proxy.flow()
            replica.proxy.reset()


async def late(site: Site, chance: random.Random) -> None:
    """Delay commands until after their senders have timed out."""
    replicas = chance.choice([site.replicas, [chance.choice(site.replicas)]])
    with site.fault("away") if replicas is site.replicas else site.fault("cut off", replicas[0]):
        for replica in replicas:
            replica.proxy.hold("up")
        await asyncio.sleep(chance.uniform(5, 9))
        for replica in replicas:
            replica.proxy.flow()


async def full(site: Site, chance: random.Random) -> None:
    """Let Redis reach its memory limit."""
    with site.fault("full"):
        async with site.redis() as redis:
            await redis.config_set("maxmemory", "1mb")
            await asyncio.sleep(chance.uniform(3, 6))
            await redis.config_set("maxmemory", "0")


async def clock(site: Site, chance: random.Random) -> None:
    """Step the wall clock of Redis, forwards or backwards."""
    step = chance.choice([12, -12, 60, -60])
    with site.fault("clock"):
        site.step_clock(step)
        await asyncio.sleep(1)
    if step > site.history.retention:
        site.happened("lost all")  # everything has expired


async def some(site: Site, chance: random.Random) -> None:
    """Do the quick ones, one after the other. The replica that is killed is not started again."""
    for strike in (flush, promote):
        await strike(site, chance)
        await asyncio.sleep(2)  # so that the next fault hits running generations
    await _kill(site, chance.choice(site.replicas))


async def mixed(site: Site, chance: random.Random) -> None:
    """Do a random one of the others."""
    names = [name for name, nemesis in NEMESES.items() if nemesis.load == "mixed" and nemesis.workers == 1]
    name = chance.choice([name for name in names if name not in ("some", "mix")])
    await NEMESES[name].strike(site, chance)


NEMESES = {
    "none": Nemesis(nothing),
    "kill": Nemesis(kill),
    "kill-worker": Nemesis(kill_worker, workers=2),
    "stop": Nemesis(stop),
    "drain": Nemesis(drain),
    "restart": Nemesis(restart),
    "empty": Nemesis(empty),
    "flush": Nemesis(flush),
    "promote": Nemesis(promote, secondary=True),
    "promote-kill": Nemesis(promote_kill, secondary=True),
    "hang-3": Nemesis(hang_3),
    "hang-13": Nemesis(hang_13),
    "one-way": Nemesis(one_way),
    "late": Nemesis(late),
    "full": Nemesis(full),
    "clock": Nemesis(clock, clock=True),
    "reuse": Nemesis(nothing, load="reuse", retention=4.0),
    "crowd": Nemesis(kill, load="crowd", often=False),
    "some": Nemesis(some, secondary=True, pause=2.0),
    "mix": Nemesis(mixed, secondary=True, clock=True),
}
