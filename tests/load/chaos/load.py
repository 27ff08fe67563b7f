"""The load: generations that are requested, followed, resumed, requested again and cancelled at random."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from typing import TYPE_CHECKING, Any

from load.chaos.history import Reader
from load.chaos.readers import (
    Cancelling,
    ClientReading,
    InterruptingReading,
    Reading,
    SharedReading,
    Sockets,
    SSEReading,
    UnnamedReading,
    WebSocketReading,
)
from load.chaos.site import question

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from load.chaos.site import Site

LONGEST = 10.0
"""Seconds of the longest answer that is not to be cancelled."""
TO_CANCEL = 90.0
"""Seconds of an answer that is to be cancelled."""
HOP = 2.5
"""Mean seconds between the reconnects of a reader that hops."""
CROWD = 2000
"""Generations of `crowd`, which all run at once."""
WAVE = 100
"""How many of them are started together."""
AT_ONCE = 6
"""Generations that are requested again when a fault is about to happen."""
CROWD_SIZE = 20
CROWD_RATE = 0.5
FOLLOWING = (WebSocketReading, SSEReading)


class Load:
    """Generations on a site; `rate` of them start per second."""

    def __init__(self, site: Site, seed: int, rate: float) -> None:
        self._site = site
        self._seed = seed
        self._rate = rate
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._asked: list[tuple[Reading, dict[str, Any]]] = []  # readers with the chats that they sent
        self.readers: list[Reading] = []

    async def mixed(self, seconds: float) -> None:
        """Start generations for `seconds`, with readers of all kinds."""
        asking_again = asyncio.create_task(self._ask_again_when_struck())
        try:
            await self._start(self._generation, seconds)
        finally:
            asking_again.cancel()

    async def _ask_again_when_struck(self) -> None:
        """At each fault, request running generations again at once: if a second run ever starts, it does then."""
        chance = random.Random(self._seed)
        for number in itertools.count():
            await self._site.struck(3600)
            running = [(reading, ask) for reading, ask in self._asked if reading.began.is_set() and not reading.ended]
            for reading, ask in chance.sample(running, min(AT_ONCE, len(running))):
                again = self.reader(chance.choice(FOLLOWING), f"{reading.record.id} struck{number}", chance, ask=ask)
                self.spawn(self._after(chance.choice([0, 0.05, 0.1, 0.2, 0.4]), again.run()))

    async def _after(self, delay: float, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.sleep(delay)
        await work

    async def reuse(self, seconds: float) -> None:
        """Start generations for `seconds` whose ids are used again after the retention time."""
        await self._start(self._used_again, seconds)

    async def crowd(self) -> None:
        """Start CROWD generations that run at once, one in four with another reader at a random replica."""
        chance = random.Random(self._seed)
        asking, following = Sockets(), Sockets()
        for first in range(0, CROWD, WAVE):
            askers = []
            for number in range(first, first + WAVE):
                name = f"c{self._seed}-{number}"
                ask = question(name, 0, CROWD_SIZE, CROWD_RATE)
                askers.append(self.reader(SharedReading, f"{name} asker", chance, ask=ask, sockets=asking))
                self.spawn(askers[-1].run())
            for asker in askers:
                await asker.began.wait()
            for asker in askers[::4]:
                name = f"{asker.record.id} follower"
                self.spawn(self.reader(SharedReading, name, chance, sockets=following).run())
            self._raise()

    async def _start(self, generation: Callable[[str], Coroutine[Any, Any, None]], seconds: float) -> None:
        chance = random.Random(self._seed)
        deadline = time.monotonic() + seconds
        number = 0
        while time.monotonic() < deadline:
            self.spawn(generation(f"g{self._seed}-{number}"))
            number += 1
            await asyncio.sleep(chance.expovariate(self._rate))
            self._raise()

    async def end(self, seconds: float) -> None:
        """Wait until every reader has ended, for at most `seconds`; the others are left without an end."""
        deadline = time.monotonic() + seconds
        while self._tasks and time.monotonic() < deadline:
            await asyncio.wait(self._tasks, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            self._raise()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task until it ends, or until `close`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._failure = task.exception()

    def _raise(self) -> None:
        if self._failure:
            raise self._failure

    def reader(self, kind: type[Reading], name: str, chance: random.Random, use: int = 0, **more: Any) -> Reading:
        """Return a new reader, which has a record of its own in the history. `name`: the generation's id, and a role."""
        generation_id, _, role = name.partition(" ")
        reading = kind(
            self._site, Reader(f"{generation_id} {role} {kind.transport}", generation_id, use), chance, **more
        )
        self.readers.append(reading)
        return reading

    async def _generation(self, generation_id: str) -> None:
        """Run one generation with all its readers."""
        chance = random.Random(generation_id)
        rate = chance.choice([4, 8, 16])
        to_cancel = chance.random() < 0.25
        seconds = TO_CANCEL if to_cancel else chance.uniform(1, LONGEST)
        ask = question(generation_id, 0, int(seconds * rate) + 1, rate)
        hop = chance.choice([None, HOP])
        kind = chance.choice([WebSocketReading, WebSocketReading, SSEReading, SSEReading, ClientReading])
        asker = self.reader(kind, f"{generation_id} asker", chance, ask=ask, hop=hop)
        self._asked.append((asker, ask))
        asking = self.spawn(self._read(asker, ask, chance))
        await asker.began.wait()
        if asker.ended and asker.refusal:
            return
        for number in range(chance.randint(1, 2)):
            follower = self._follower(f"{generation_id} follower{number}", chance)
            self.spawn(self._read(follower, ask, chance, delay=chance.uniform(0, 4)))
        if chance.random() < 0.2:
            self.spawn(self._unnamed(f"{generation_id}.unnamed", chance))
        if chance.random() < 0.4:
            again = self.reader(chance.choice(FOLLOWING), f"{generation_id} again", chance, ask=ask)
            self.spawn(self._read(again, ask, chance, delay=chance.uniform(0.5, 8)))
        if to_cancel and chance.random() < 0.7:
            cancelling = self.reader(Cancelling, f"{generation_id} cancel", chance)
            self.spawn(self._read(cancelling, None, chance, delay=chance.uniform(1, 6)))
        elif to_cancel:
            self.spawn(self._interrupt(generation_id, chance))
        if kind is not ClientReading and chance.random() < 0.15:
            # From now on only readers elsewhere keep it from being cancelled.
            await asyncio.sleep(chance.uniform(4, 5))
            if not asker.ended:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                asker.leave()
                return
        while not asker.ended:
            await asyncio.sleep(0.1)
        if asker.refusal is None:
            for number in range(chance.randint(0, 2)):
                late = self._follower(f"{generation_id} late{number}", chance, ask=chance.choice([None, ask]))
                self.spawn(self._read(late, ask, chance, delay=chance.uniform(0.5, 6)))

    async def _unnamed(self, name: str, chance: random.Random) -> None:
        ask = question(name, 0, chance.randint(5, 20), 8)
        del ask["id"]
        await asyncio.sleep(chance.uniform(0, 2))
        await self.reader(UnnamedReading, f"{name} asker", chance, ask=ask).run()

    async def _used_again(self, generation_id: str) -> None:
        """Use an id twice. A reader that has read a part of the first answer resumes during the second one."""
        chance = random.Random(generation_id)
        holder: Reading | None = None
        for use in range(2):
            ask = question(generation_id, use, chance.randint(10, 30), 8)
            asker = self.reader(chance.choice(FOLLOWING), f"{generation_id} asker{use}", chance, use, ask=ask)
            self.spawn(asker.run())
            await asker.began.wait()
            if holder:
                await asyncio.sleep(chance.uniform(-1, 1))
                await holder.run()
            else:
                holder = self.reader(chance.choice(FOLLOWING), f"{generation_id} holder", chance)
                reading = asyncio.create_task(holder.run())
                await asyncio.sleep(chance.uniform(0.3, 0.8))
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            while not asker.ended:
                await asyncio.sleep(0.1)
            await asyncio.sleep(self._site.history.retention + 1.5)

    def _follower(self, name: str, chance: random.Random, **more: Any) -> Reading:
        return self.reader(chance.choice(FOLLOWING), name, chance, hop=chance.choice([None, HOP]), **more)

    async def _interrupt(self, generation_id: str, chance: random.Random) -> None:
        """Continue from a generation before it has ended."""
        ask = question(f"{generation_id}.next", 0, chance.randint(5, 20), 8) | {"previous_id": generation_id}
        interrupted = Reader(f"{generation_id} interrupted", generation_id, 0)
        self._site.history.readers.append(interrupted)
        name = f"{generation_id}.next asker"
        reading = self.reader(InterruptingReading, name, chance, ask=ask, interrupted=interrupted)
        await self._read(reading, ask, chance, delay=chance.uniform(1, 6))

    async def _read(
        self, reading: Reading, ask: dict[str, Any] | None, chance: random.Random, *, delay: float = 0.0
    ) -> None:
        if delay and chance.random() < 0.6:
            await self._site.struck(2 * delay)  # so that the fault happens while it reads
            delay = chance.choice([0.0, chance.uniform(0, 0.5), chance.uniform(0, 2)])
        await asyncio.sleep(delay)
        await reading.run()
        if ask and reading.refusal in ("not_found", "generation_gone") and chance.random() < 0.7:
            # As a user would: send the chat again.
            again = self.reader(WebSocketReading, f"{reading.record.name.rpartition(' ')[0]}-again", chance, ask=ask)
            await again.run()


@contextlib.asynccontextmanager
async def loaded(site: Site, seed: int, rate: float) -> Any:
    """Yield a load, and cancel its tasks at the end of the block."""
    load = Load(site, seed, rate)
    try:
        yield load
    finally:
        await load.close()
