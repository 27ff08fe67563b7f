"""What runs: one task for each generation, from its request to its terminal frame. No task per reader.

A generation ends here and nowhere else: what its upstream raises, returns or leaves undone becomes exactly one terminal
frame in its log. A named one outlives its readers for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ws_chat.protocol.errors import DRAINING, INTERNAL_ERROR, ChatError
from ws_chat.protocol.frames import Done, Failed
from ws_chat.relay.conversation import conversation_of
from ws_chat.relay.events import GenerationEnded, GenerationStarted
from ws_chat.relay.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.protocol.frames import Terminal
    from ws_chat.relay.access import Caller
    from ws_chat.relay.events import Observer
    from ws_chat.stores.base import Log
    from ws_chat.upstreams.base import Upstream

logger = logging.getLogger("ws_chat.producers")


@dataclass(slots=True)
class _Producing:
    """A generation that runs."""

    task: asyncio.Task[None]
    log: Log
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    window: asyncio.TimerHandle | None = None
    """Cancels it, when nobody has read it for long enough."""


class _Beginning:
    """Tells a generation of its first delta. A function that takes itself off a log would be a cycle of references."""

    def __init__(self, generation: Generation, log: Log, clock: Callable[[], float]) -> None:
        self._generation = generation
        self._log = log
        self._clock = clock

    def __call__(self, _: int, deltas: Sequence[Delta]) -> None:
        self._log.unwatch(self)
        if deltas:
            self._generation.begin(self._clock())


class Producers:
    """The generations that run. Without a reader for `resume_window` seconds they are cancelled."""

    def __init__(self, upstream: Upstream, resume_window: float, clock: Callable[[], float], observe: Observer) -> None:
        self._upstream = upstream
        self._resume_window = resume_window
        self._clock = clock
        self._observe = observe
        self._running: dict[str, _Producing] = {}
        self._of_principals: Counter[str] = Counter()
        self._stopped: asyncio.Future[list[Any]] | None = None
        self._quiet = asyncio.Event()
        self._reading = 0

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._running)

    def __contains__(self, key: str) -> bool:
        """Whether the generation with that key runs."""
        return key in self._running

    def of(self, principal: str) -> int:
        """Return how many of a principal run."""
        return self._of_principals[principal]

    def produce(self, caller: Caller, key: str, log: Log, request: dict[str, Any]) -> None:
        """Start to produce what is asked for into a log."""
        generation = Generation(log.start.id, log.start.model, self._clock())

        def on_done(task: asyncio.Task[None]) -> None:
            log.end(self._terminal(generation, log.last, task), on_end)

        def on_end(terminal: Terminal) -> None:
            producing = self._running.pop(key)
            self._of_principals[caller.principal] -= 1
            if not self._of_principals[caller.principal]:
                del self._of_principals[caller.principal]
            if producing.window:
                producing.window.cancel()
            producing.ended.set()
            self._observe(_ended(caller, key, log, terminal, generation, request))
            self._look_if_quiet()

        log.watch(_Beginning(generation, log, self._clock))
        task = asyncio.create_task(self._upstream.generate(request, log.append, generation.outcome))
        # The end is told from outside: a task that is cancelled before its first step never runs a line of its own.
        task.add_done_callback(on_done)
        self._running[key] = _Producing(task, log)
        self._of_principals[caller.principal] += 1
        self._observe(GenerationStarted(caller.transport))

    def attach(self, key: str, log: Log) -> None:
        """Count a reader of a generation, which keeps it from being cancelled."""
        self._reading += 1
        if producing := self._of_log(key, log):
            self._count(producing, 1)

    def watched(self, key: str, *, begins: bool) -> None:
        """Count the readers that a generation has in other processes as one, or count it out."""
        if producing := self._running.get(key):
            self._count(producing, 1 if begins else -1)

    def detach(self, key: str, log: Log) -> None:
        """Count a reader out. After the last one the resume window opens."""
        self._reading -= 1
        self._look_if_quiet()
        if producing := self._of_log(key, log):
            self._count(producing, -1)

    def _count(self, producing: _Producing, readers: int) -> None:
        producing.readers += readers
        if producing.window:
            producing.window.cancel()
            producing.window = None
        if producing.readers == 0:
            loop = asyncio.get_running_loop()
            producing.window = loop.call_later(self._resume_window, producing.task.cancel)

    def _of_log(self, key: str, log: Log) -> _Producing | None:
        # One that is forgotten may still be read when another runs under its name.
        producing = self._running.get(key)
        return producing if producing and producing.log is log else None

    def cancel(self, key: str) -> None:
        """Cancel a generation, if it runs: its upstream request is closed, then its log ends."""
        if producing := self._running.get(key):
            producing.task.cancel()

    async def interrupt(self, key: str) -> None:
        """Cancel a generation, if it runs, and wait for its end."""
        if producing := self._running.get(key):
            producing.task.cancel()
            await producing.ended.wait()

    async def quiet(self, timeout: float) -> None:
        """Wait until nothing runs and nobody reads any more, for so many seconds at most."""
        self._look_if_quiet()
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            pass

    async def stop(self) -> None:
        """End what runs with the error `draining`. Any number of callers wait for one end."""
        if self._stopped is None:
            running = list(self._running.values())
            for producing in running:
                producing.task.cancel()
            self._stopped = asyncio.gather(
                *(producing.task for producing in running),
                *(producing.ended.wait() for producing in running),
                return_exceptions=True,
            )
        await asyncio.shield(self._stopped)

    def _look_if_quiet(self) -> None:
        if self._running or self._reading:
            self._quiet.clear()
        else:
            self._quiet.set()

    def _terminal(self, generation: Generation, last: int, task: asyncio.Task[None]) -> Terminal:
        now = self._clock()
        if task.cancelled():
            return generation.fail(last, DRAINING, now) if self._stopped else generation.cancel(last, now)
        error = task.exception()
        if error is None:
            return generation.finish(last, now)
        if isinstance(error, ChatError):
            return generation.fail(last, error.info, now)
        logger.error("Generation %s failed", generation.id, exc_info=error)
        return generation.fail(last, INTERNAL_ERROR, now)


@contextmanager
def ending(log: Log) -> Iterator[asyncio.Event]:
    """Read a log that another process writes; yield what is set at its end."""
    over = asyncio.Event()

    def wake(*_: object) -> None:
        if log.terminal:
            over.set()

    log.watch(wake)
    wake()
    try:
        yield over
    finally:
        log.unwatch(wake)


def _ended(
    caller: Caller, key: str, log: Log, terminal: Terminal, generation: Generation, request: dict[str, Any]
) -> GenerationEnded:
    return GenerationEnded(
        transport=caller.transport,
        id=log.start.id,
        principal=caller.principal,
        named=key.startswith("named/"),
        requested_model=request["model"],
        model=generation.outcome.model or log.start.model,
        status=terminal.status if isinstance(terminal, Done) else "failed",
        code=terminal.error.code if isinstance(terminal, Failed) else None,
        finish_reason=generation.outcome.finish_reason,
        usage=generation.outcome.usage,
        deltas=log.last,
        size=log.size,
        first=generation.first,
        total=generation.total,
        content=partial(conversation_of, log),
    )
