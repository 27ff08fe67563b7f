"""The use case: start a generation, cancel it, let go of it. One producer task each, and no task per reader.

A generation is started here and nowhere else, and ends here: what its upstream raises, returns or leaves undone
becomes exactly one terminal frame in its log. Knows no door and no JSON.
"""

from __future__ import annotations

import asyncio
import logging
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

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


class Relay:
    """Runs generations: `upstream` produces their deltas, `store` keeps their logs."""

    def __init__(
        self,
        upstream: Upstream,
        store: Store,
        *,
        models: Sequence[str] = (),
        max_generations: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allow the models that match one of the shell patterns `models` (none: any). `clock` gives seconds."""
        self._upstream = upstream
        self._store = store
        self._models = models
        self._max_generations = max_generations
        self._clock = clock
        self._producers: dict[str, asyncio.Task[None]] = {}
        self._stopped: asyncio.Future[list[BaseException | None]] | None = None

    @property
    def running(self) -> int:
        """How many generations are running."""
        return len(self._producers)

    async def start(self, generation_id: str, chat: Chat) -> Log:
        """Start a generation and return its log, before the upstream has answered.

        Raises ChatError (`model_not_allowed`, `overloaded`, `draining`), with nothing started.
        """
        if self._stopped:
            raise ChatError(_DRAINING.code, _DRAINING.message, retry_after=_DRAINING.retry_after)
        self._check_model(chat.model)
        if len(self._producers) >= self._max_generations:
            raise ChatError("overloaded", "The server runs as many generations as it can.", retry_after=1)
        model = self._upstream.resolve(chat.model)
        log = await self._store.create(Start(generation_id, 0, model))
        generation = Generation(generation_id, model, self._clock())

        def begin(_: int, deltas: Sequence[Delta]) -> None:
            log.unwatch(begin)
            if deltas:
                generation.begin(self._clock())

        def on_done(producer: asyncio.Task[None]) -> None:
            del self._producers[generation_id]
            log.end(self._terminal(generation, log.last, producer))

        log.watch(begin)
        request = {**chat.body, "model": model}
        producer = asyncio.create_task(self._upstream.generate(request, log.append, generation.outcome))
        # The end is told from outside: a task that is cancelled before its first step never runs a line of its own.
        producer.add_done_callback(on_done)
        self._producers[generation_id] = producer
        return log

    def cancel(self, generation_id: str) -> None:
        """Stop a generation: its upstream request is closed, then its log ends. One that has ended is left as it is."""
        if producer := self._producers.get(generation_id):
            producer.cancel()

    def release(self, generation_id: str) -> None:
        """Let go of a generation that nobody can read any more: it is cancelled if it runs, and forgotten."""
        self.cancel(generation_id)
        self._store.remove(generation_id)

    async def stop(self) -> None:
        """End what runs with the error `draining`, and start nothing more. Any number of callers wait for one end."""
        if self._stopped is None:
            producers = list(self._producers.values())
            for producer in producers:
                producer.cancel()
            self._stopped = asyncio.gather(*producers, return_exceptions=True)
        await asyncio.shield(self._stopped)

    async def close(self) -> None:
        """Stop, and close the upstream and the store."""
        await self.stop()
        await self._upstream.close()
        await self._store.close()

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
