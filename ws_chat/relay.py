"""The use case: start a generation, follow it, cancel it, let go of it. One producer task each, no task per reader.

A generation is started here and nowhere else, and ends here: what its upstream raises, returns or leaves undone
becomes exactly one terminal frame in its log. Named ones outlive their readers for a while. Knows no door and no JSON.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ws_chat.conversation import conversation, is_same, write
from ws_chat.errors import ChatError, ErrorInfo
from ws_chat.frames import Failed, Start
from ws_chat.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.deltas import Delta
    from ws_chat.frames import Chat, Terminal
    from ws_chat.stores.base import Log, Store
    from ws_chat.upstreams.base import Upstream

logger = logging.getLogger("ws_chat.relay")


ANONYMOUS: Final = "anonymous"
"""The one principal there is without keys."""


class Caller(NamedTuple):
    """Who asks: a principal, on one connection (a random token). Neither name holds a `/`."""

    principal: str
    connection: str

    def key(self, generation_id: str, *, named: bool) -> str:
        """Return the key of a generation's log: named ones belong to the principal, the others to the connection."""
        return f"named/{self.principal}/{generation_id}" if named else f"unnamed/{self.connection}/{generation_id}"


@dataclass(slots=True)
class _Producing:
    """A generation that runs."""

    task: asyncio.Task[None]
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


class Relay:
    """Runs generations: `upstream` produces their deltas, `store` keeps their logs."""

    def __init__(  # noqa: PLR0913  (most are keywords)
        self,
        upstream: Upstream,
        store: Store,
        *,
        models: Sequence[str] = (),
        max_generations: int = 10_000,
        resume_window: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allow the models that match one of the shell patterns `models` (none: any). `clock` gives seconds.

        A named generation that nobody reads for `resume_window` seconds is cancelled.
        """
        self._upstream = upstream
        self._store = store
        self._models = models
        self._max_generations = max_generations
        self._resume_window = resume_window
        self._clock = clock
        self._producing: dict[str, _Producing] = {}
        self._stopped: asyncio.Future[list[BaseException | None]] | None = None

    @property
    def running(self) -> int:
        """How many generations are running."""
        return len(self._producing)

    async def start(self, caller: Caller, generation_id: str, chat: Chat) -> Log:
        """Start a generation, or find the one that the same named request has started already; return its log.

        The upstream has not answered yet. Raises ChatError (`id_conflict`, `not_found`, `model_not_allowed`,
        `overloaded`, `draining`), with nothing started.
        """
        named = chat.id is not None
        key = caller.key(generation_id, named=named)
        if named and (log := await self._store.get(key)):
            return _attached(log, chat)
        self._check_room(besides=self._interrupted(caller, chat))
        self._check_model(chat.model)
        before, model = await self._previous(caller, chat)
        self._check_room()  # that may have taken a while
        model = self._upstream.resolve(chat.model or model)
        try:
            log = await self._store.create(key, Start(generation_id, 0, model), write(chat, before))
        except KeyError:
            # The same request came over two connections at the same instant: the other one was first.
            if log_of_other := await self._store.get(key):
                return _attached(log_of_other, chat)
            raise
        messages = [*before, *chat.body["messages"]]
        self._produce(key, log, {**chat.body, "model": model, "messages": messages})
        return log

    async def find(self, caller: Caller, generation_id: str, after: int = 0) -> Log:
        """Return the log of a named generation, to be read after the seq `after`.

        Raises ChatError: `not_found`; `invalid_request` when `after` is beyond its end.
        """
        log = await self._store.get(caller.key(generation_id, named=True))
        if log is None:
            raise ChatError("not_found", "There is no such generation.", param="id")
        if after > (log.terminal.seq if log.terminal else log.last):
            raise ChatError("invalid_request", '"after" is beyond what the generation has said.', param="after")
        return log

    def attach(self, key: str) -> None:
        """Count a reader of a generation, which keeps it from being cancelled."""
        if producing := self._producing.get(key):
            producing.readers += 1
            if producing.window:
                producing.window.cancel()
                producing.window = None

    def detach(self, key: str) -> None:
        """Count a reader out. After the last one the resume window opens."""
        if producing := self._producing.get(key):
            producing.readers -= 1
            if producing.readers == 0:
                loop = asyncio.get_running_loop()
                producing.window = loop.call_later(self._resume_window, producing.task.cancel)

    async def cancel(self, caller: Caller, generation_id: str) -> None:
        """Stop a generation: its upstream request is closed, then its log ends. One that has ended is left as it is.

        Raises ChatError (`not_found`).
        """
        key, _ = await self._find_any(caller, generation_id, "id")
        if producing := self._producing.get(key):
            producing.task.cancel()

    def release(self, key: str) -> None:
        """Let go of a generation that nobody can read any more: it is cancelled if it runs, and forgotten."""
        if producing := self._producing.get(key):
            producing.task.cancel()
        self._store.remove(key)

    async def stop(self) -> None:
        """End what runs with the error `draining`, and start nothing more. Any number of callers wait for one end."""
        if self._stopped is None:
            producers = [producing.task for producing in self._producing.values()]
            for producer in producers:
                producer.cancel()
            self._stopped = asyncio.gather(*producers, return_exceptions=True)
        await asyncio.shield(self._stopped)

    async def close(self) -> None:
        """Stop, and close the upstream and the store."""
        await self.stop()
        await self._upstream.close()
        await self._store.close()

    def _produce(self, key: str, log: Log, request: dict[str, Any]) -> None:
        generation = Generation(log.start.id, log.start.model, self._clock())

        def on_done(task: asyncio.Task[None]) -> None:
            producing = self._producing.pop(key)
            if producing.window:
                producing.window.cancel()
            log.end(self._terminal(generation, log.last, task))
            producing.ended.set()

        log.watch(_Beginning(generation, log, self._clock))
        task = asyncio.create_task(self._upstream.generate(request, log.append, generation.outcome))
        # The end is told from outside: a task that is cancelled before its first step never runs a line of its own.
        task.add_done_callback(on_done)
        self._producing[key] = _Producing(task)

    async def _previous(self, caller: Caller, chat: Chat) -> tuple[list[Any], str | None]:
        """Return the messages that go in front of a chat's own, and the model they were said by."""
        if chat.previous_id is None:
            return [], None
        key, log = await self._find_any(caller, chat.previous_id, "previous_id")
        if producing := self._producing.get(key):
            producing.task.cancel()
            await producing.ended.wait()
        deltas: list[Delta] = []
        while part := log.after(len(deltas), log.last):
            deltas += part
        return conversation(log.request, deltas), log.start.model

    async def _find_any(self, caller: Caller, generation_id: str, param: str) -> tuple[str, Log]:
        """Return the key and log of a named generation of the principal, or any generation of the connection."""
        for named in (True, False):
            key = caller.key(generation_id, named=named)
            if log := await self._store.get(key):
                return key, log
        raise ChatError("not_found", "There is no such generation.", param=param)

    def _interrupted(self, caller: Caller, chat: Chat) -> int:
        """Return how many running generations a chat would end."""
        keys = [caller.key(chat.previous_id, named=named) for named in (True, False)] if chat.previous_id else []
        return any(key in self._producing for key in keys)

    def _check_room(self, *, besides: int = 0) -> None:
        if self._stopped:
            raise ChatError(_DRAINING.code, _DRAINING.message, retry_after=_DRAINING.retry_after)
        if len(self._producing) - besides >= self._max_generations:
            raise ChatError("overloaded", "The server runs as many generations as it can.", retry_after=1)

    def _check_model(self, model: str | None) -> None:
        # The operator's own default is always allowed: the list limits what a client may name.
        if model is not None and self._models and not any(fnmatchcase(model, name) for name in self._models):
            raise ChatError("model_not_allowed", "This model may not be used here.", param="model")

    def _terminal(self, generation: Generation, last: int, producer: asyncio.Task[None]) -> Terminal:
        now = self._clock()
        if producer.cancelled() and not self._stopped:
            return generation.cancel(last, now)
        if producer.cancelled():
            terminal: Terminal = generation.fail(last, _DRAINING)
        elif (error := producer.exception()) is None:
            terminal = generation.finish(last, now)
        elif isinstance(error, ChatError):
            terminal = generation.fail(last, error.info)
        else:
            logger.error("Generation %s failed", generation.id, exc_info=error)
            return generation.fail(last, ErrorInfo("internal_error", "Something went wrong inside the server."))
        if isinstance(terminal, Failed):
            # Not the message: it may quote what was asked.
            logger.warning("Generation %s failed: %s", generation.id, terminal.error.code)
        return terminal


_DRAINING: Final = ErrorInfo("draining", "The server is about to stop.", retry_after=1)


def _attached(log: Log, chat: Chat) -> Log:
    if not is_same(log.request, chat):
        raise ChatError("id_conflict", "This id names another request already.", param="id")
    return log
