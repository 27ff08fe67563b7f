"""Runs generations: one task each, from the request to the terminal frame. No task per reader.

Generations end only here: however the task ends, the log gets exactly one terminal frame. A named generation outlives
its readers by the resume window.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ws_chat.protocol.deltas import encode_delta
from ws_chat.protocol.errors import DRAINING, INTERNAL_ERROR, ChatError
from ws_chat.protocol.frames import Done, Failed
from ws_chat.relay.conversation import Answer
from ws_chat.relay.events import GenerationEnded, GenerationStarted, LimitReached
from ws_chat.relay.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ws_chat.protocol.deltas import Delta, Fields, Outcome
    from ws_chat.protocol.frames import Terminal
    from ws_chat.relay.access import Caller
    from ws_chat.relay.events import Observer
    from ws_chat.stores.base import GenerationKey, Log
    from ws_chat.upstreams.base import Request, Upstream

logger = logging.getLogger("ws_chat.runner")


@dataclass(slots=True)
class _Run:
    task: asyncio.Task[None]
    log: Log
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    window: asyncio.TimerHandle | None = None
    """The timer of the resume window, which cancels the generation."""


class _FirstDelta:
    """Records the time to the first delta. A class, because a self-removing closure would be a reference cycle."""

    def __init__(self, generation: Generation, log: Log, clock: Callable[[], float]) -> None:
        self._generation = generation
        self._log = log
        self._clock = clock

    def __call__(self, last: int, _: Sequence[Delta]) -> None:
        self._log.unwatch(self)
        if last:
            self._generation.record_first_delta(self._clock())


class _Answer:
    """Appends an upstream's deltas to a log: at most `limit` bytes."""

    __slots__ = ("_limit", "_log", "_room")

    def __init__(self, log: Log, limit: int) -> None:
        self._log = log
        self._limit = self._room = limit

    def emit(self, deltas: Sequence[Fields | Delta]) -> None:
        """Append deltas. Raises ChatError (`upstream_malformed`) when they are too many bytes."""
        encoded: Sequence[Delta]
        if len(deltas) == 1 and type(deltas[0]) is bytes:  # nearly always
            encoded = deltas  # type: ignore[assignment]
            self._room -= len(deltas[0])
        else:
            try:
                self._room -= len(b"".join(deltas))  # type: ignore[arg-type]  # the fastest way to find fields among them
                encoded = deltas  # type: ignore[assignment]
            except TypeError:
                found = (delta if isinstance(delta, bytes) else encode_delta(delta) for delta in deltas)
                encoded = [delta for delta in found if delta]
                self._room -= sum(map(len, encoded))
        if self._room < 0:
            message = f"The upstream's answer has more than {self._limit} bytes."
            raise ChatError("upstream_malformed", message, limit="max_answer_bytes")
        if encoded:
            self._log.append(encoded)


class Runner:
    """The running generations, at most `max_generations`. One without a reader for `resume_window` seconds is cancelled."""

    def __init__(
        self,
        upstream: Upstream,
        observe: Observer,
        *,
        max_generations: int,
        max_generations_per_principal: int | None,
        max_answer_bytes: int,
        resume_window: float,
        clock: Callable[[], float],
        shared: bool,
    ) -> None:
        self._upstream = upstream
        self._observe = observe
        self._max_generations = max_generations
        self._max_per_principal = max_generations_per_principal
        self._max_answer_bytes = max_answer_bytes
        self._resume_window = resume_window
        self._clock = clock
        self._running: dict[GenerationKey, _Run] = {}
        self._reserved = 0
        self._of_principals: Counter[str] = Counter()  # running and reserved
        self._shared = shared
        self._reading = 0
        self._staying = 0  # readers that cannot go on at another process
        self._quiet = asyncio.Event()
        self._unread = asyncio.Event()
        self._stopped: asyncio.Future[list[Any]] | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @contextmanager
    def reserve(self, principal: str, replacing: GenerationKey | None) -> Iterator[None]:
        """Reserve a place for the generation that the block starts. The place of the generation `replacing` counts as free.

        Raises ChatError (`overloaded`, `too_many_generations`).
        """
        replaced = replacing in self._running
        if self.running + self._reserved - replaced >= self._max_generations:
            raise ChatError(
                "overloaded",
                "The server's limit of running generations is reached.",
                retry_after=1,
                limit="max_generations",
            )
        limit = self._max_per_principal
        if limit and self._of_principals[principal] - replaced >= limit:
            message = f"At most {limit} generations may run at once."
            raise ChatError("too_many_generations", message, retry_after=1, limit="max_generations_per_principal")
        self._reserved += 1
        self._of_principals[principal] += 1
        try:
            yield
        finally:
            self._reserved -= 1
            self._release(principal)

    def run(self, caller: Caller, key: GenerationKey, log: Log, request: Request, *, generate: bool = True) -> None:
        """Start the task that writes the answer to `request` into `log`. After `stop`, it ends at once.

        Without `generate`, the answer is empty, and no upstream request is made.
        """
        generation = Generation(log.start.id, log.start.model, self._clock())

        def on_done(task: asyncio.Task[None]) -> None:
            log.end(self._terminal(generation, log.last, task), on_end)

        def on_end(terminal: Terminal) -> None:
            run = self._running.pop(key)
            if run.window:
                run.window.cancel()
            run.ended.set()
            self._release(caller.principal)
            self._observe(_ended(caller, key, log, terminal, generation, request))

        log.watch(_FirstDelta(generation, log, self._clock))
        emit = _Answer(log, self._max_answer_bytes).emit
        answer = self._upstream.generate if generate else _answer_nothing
        task = asyncio.create_task(answer(request, emit, generation.outcome))
        # A callback, because a task that is cancelled before its first step runs no code of its own.
        task.add_done_callback(on_done)
        if self._stopped:
            task.cancel()
        self._running[key] = _Run(task, log)
        self._of_principals[caller.principal] += 1
        self._observe(GenerationStarted(caller.transport))

    def attach(self, key: GenerationKey, log: Log) -> None:
        """Count a reader of a log, which keeps its generation from being cancelled."""
        self._count(key, 1)
        if run := self._run_of(key, log):
            self._count_reader(run, 1)

    def detach(self, key: GenerationKey, log: Log) -> None:
        """Stop counting a reader. After the last one the resume window opens."""
        self._count(key, -1)
        if run := self._run_of(key, log):
            self._count_reader(run, -1)

    def add_remote_reader(self, key: GenerationKey) -> None:
        if run := self._running.get(key):
            self._count_reader(run, 1)

    def remove_remote_reader(self, key: GenerationKey) -> None:
        if run := self._running.get(key):
            self._count_reader(run, -1)

    def cancel(self, key: GenerationKey, *, unless_read: bool = False) -> bool:
        """Cancel a generation: its upstream request is closed, then its log ends. Return whether it runs here."""
        run = self._running.get(key)
        if run and not (unless_read and run.readers):
            run.task.cancel()
        return run is not None

    async def quiet(self, timeout: float) -> None:
        """Wait until no generation runs or starts, for at most `timeout` seconds.

        Waits for readers too, except for those that can go on at another process.
        """
        await self._wait(self._quiet, timeout)

    async def unread(self, timeout: float) -> None:
        """Wait until no generation has a reader, for at most `timeout` seconds."""
        await self._wait(self._unread, timeout)

    async def stop(self) -> None:
        """End all generations with the error `draining`. May be called several times, also at once."""
        if self._stopped is None:
            runs = list(self._running.values())
            for run in runs:
                run.task.cancel()
            self._stopped = asyncio.gather(
                *(run.task for run in runs), *(run.ended.wait() for run in runs), return_exceptions=True
            )
        await asyncio.shield(self._stopped)

    def _release(self, principal: str) -> None:
        self._of_principals[principal] -= 1
        if not self._of_principals[principal]:
            del self._of_principals[principal]
        self._update_quiet()

    def _run_of(self, key: GenerationKey, log: Log) -> _Run | None:
        # A log that was removed may still be read while another generation runs under its key.
        run = self._running.get(key)
        return run if run and run.log is log else None

    def _count_reader(self, run: _Run, change: int) -> None:
        run.readers += change
        if run.window:
            run.window.cancel()
            run.window = None
        if run.readers == 0:
            run.window = asyncio.get_running_loop().call_later(self._resume_window, run.task.cancel)

    def _count(self, key: GenerationKey, change: int) -> None:
        self._reading += change
        if not (self._shared and key.named):
            self._staying += change
        self._update_quiet()

    async def _wait(self, event: asyncio.Event, timeout: float) -> None:
        self._update_quiet()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await event.wait()

    def _update_quiet(self) -> None:
        for event, busy in (
            (self._quiet, self._running or self._reserved or self._staying),
            (self._unread, self._reading),
        ):
            if busy:
                event.clear()
            else:
                event.set()

    def _terminal(self, generation: Generation, last: int, task: asyncio.Task[None]) -> Terminal:
        now = self._clock()
        if task.cancelled():
            return generation.fail(last, DRAINING, now) if self._stopped else generation.cancel(last, now)
        error = task.exception()
        if error is None:
            return generation.finish(last, now)
        if isinstance(error, ChatError):
            if error.limit:
                self._observe(LimitReached(error.limit))
            return generation.fail(last, error.info, now)
        logger.error("Generation %s failed", generation.id, exc_info=error)
        return generation.fail(last, INTERNAL_ERROR, now)


async def _answer_nothing(_: object, __: object, outcome: Outcome) -> None:
    outcome.finish_reason = "stop"


def _ended(
    caller: Caller,
    key: GenerationKey,
    log: Log,
    terminal: Terminal,
    generation: Generation,
    request: Request,
) -> GenerationEnded:
    def content() -> list[Any]:
        answer = Answer()
        seq = 0
        while deltas := log.after(seq, log.last):
            seq += len(deltas)
            answer.add(deltas)
        return [*request["messages"], *filter(None, [answer.message()])]

    return GenerationEnded(
        transport=caller.transport,
        id=key.id,
        principal=caller.principal,
        named=key.named,
        requested_model=request["model"],
        model=generation.model,
        status=terminal.status if isinstance(terminal, Done) else "failed",
        code=terminal.error.code if isinstance(terminal, Failed) else None,
        finish_reason=generation.outcome.finish_reason,
        usage=generation.outcome.usage,
        deltas=log.last,
        size=log.size,
        first=generation.first,
        total=generation.total,
        content=content,
    )
