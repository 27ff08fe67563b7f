"""The use case: start a generation, follow it, cancel it, let go of it, and the last of all, drain.

Who may do what to which generation is decided here; what runs, runs in `producers`. Knows no door and no JSON.
"""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ws_chat.protocol.errors import DRAINING, UNREACHABLE, ChatError
from ws_chat.protocol.frames import Failed, Start
from ws_chat.relay.access import Quota
from ws_chat.relay.conversation import conversation_of, is_same, write
from ws_chat.relay.events import Followed, Observers, ReadingEnded
from ws_chat.relay.runner import Producers, ending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ws_chat.protocol.frames import Chat
    from ws_chat.relay.access import Caller
    from ws_chat.relay.events import Observer
    from ws_chat.relay.reader import Reader
    from ws_chat.stores.base import Log, Store
    from ws_chat.upstreams.base import Upstream


class Relay:
    """Runs generations: `upstream` produces their deltas, `store` keeps their logs."""

    def __init__(
        self,
        upstream: Upstream,
        store: Store,
        *,
        models: Sequence[str] = (),
        max_generations: int = 10_000,
        max_generations_per_principal: int | None = None,
        quota: Quota | None = None,
        max_bytes: int = 4 * 1024 * 1024,
        resume_window: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        observe: Observer | None = None,
    ) -> None:
        """Allow the models that match one of the shell patterns `models` (none: any). `clock` gives seconds.

        A conversation, with what `previous_id` puts in front, has at most `max_bytes`. A named generation that nobody
        reads for `resume_window` seconds is cancelled.
        """
        self._upstream = upstream
        self._store = store
        self._models = models
        self._max_generations = max_generations
        self._max_per_principal = max_generations_per_principal
        self._quota = quota or Quota(None)
        self._max_bytes = max_bytes
        self._observe = observe or Observers()
        self._producers = Producers(upstream, resume_window, clock, self._observe)
        self.draining = False

    def check_ready(self) -> None:
        """Raise ChatError while nothing new should come here: `draining`, or `overloaded` without the store."""
        self._check_drain()
        if not self._store.available:
            raise ChatError.of(UNREACHABLE)

    async def open(self) -> None:
        """Begin to serve other processes, where the store is shared."""
        await self._store.open(self._producers)

    @property
    def running(self) -> int:
        """How many generations are running."""
        return len(self._producers)

    async def start(self, caller: Caller, generation_id: str, chat: Chat) -> Log:
        """Start a generation, or find the one that the same named request has started already; return its log.

        The upstream has not answered yet. Raises ChatError (`id_conflict`, `not_found`, `model_not_allowed`,
        `too_large`, `rate_limited`, `too_many_generations`, `overloaded`, `draining`), with nothing started.
        """
        named = chat.id is not None
        key = caller.key(generation_id, named=named)
        # Else the store finds it when it is created: for one that replicas share, that is a round trip less.
        if named and self._may_refuse(caller, chat) and (log := await self._store.get(key)):
            return self._attached(caller, log, chat)
        self._check_room(caller, besides=self._interrupted(caller, chat))
        self._check_model(chat.model)
        await self._quota.take(caller.principal)
        before, model = await self._previous(caller, chat)
        request = write(chat, before)
        if len(request) > self._max_bytes:
            raise ChatError("too_large", f"A conversation is at most {self._max_bytes} bytes.", param="previous_id")
        model = self._upstream.resolve(chat.model or model)
        if key not in self._producers:  # else it is there already
            self._check_room(caller)  # all this may have taken a while
        start = Start(generation_id, 0, model)
        try:
            log = await self._store.create(key, start, request)
        except KeyError:
            # It was sent before, perhaps at the same instant over another connection.
            if log_of_other := await self._store.get(key):
                return self._attached(caller, log_of_other, chat)
            raise ChatError("overloaded", "The generation could not be begun.", retry_after=1) from None
        messages = [*before, *chat.body["messages"]]
        self._producers.produce(caller, key, log, {**chat.body, "model": model, "messages": messages})
        return log

    async def find(self, caller: Caller, generation_id: str, after: int = 0) -> Log:
        """Return the log of a named generation, to be read after the seq `after`.

        Raises ChatError: `not_found`; `generation_lost` when what came before `after` is lost; `invalid_request` when
        `after` is beyond its end.
        """
        log = await self._store.get(caller.key(generation_id, named=True), after)
        if log is None:
            raise ChatError("not_found", "There is no such generation.", param="id")
        if after > (log.terminal.seq if log.terminal else log.last):
            if isinstance(log.terminal, Failed) and log.terminal.error.code == "generation_lost":
                # Its replica had shown more than it had logged.
                raise ChatError("generation_lost", log.terminal.error.message)
            raise ChatError("invalid_request", '"after" is beyond what the generation has said.', param="after")
        self._observe(Followed(caller.transport, after))
        return log

    def attach(self, key: str, reader: Reader) -> None:
        """Count a reader of a generation, which keeps it from being cancelled."""
        self._producers.attach(key, reader.log)

    def detach(self, caller: Caller, key: str, reader: Reader) -> None:
        """Count a reader out. After the last one the resume window opens."""
        self._producers.detach(key, reader.log)
        self._observe(ReadingEnded(caller.transport, reader.deltas, reader.frames))

    async def cancel(self, caller: Caller, generation_id: str) -> None:
        """Stop a generation: its upstream request is closed, then its log ends. One that has ended is left as it is.

        Raises ChatError (`not_found`).
        """
        key, log = await self._find_any(caller, generation_id, "id")
        self._producers.cancel(key)
        if log.terminal is None and key not in self._producers:
            await self._store.cancel(key)

    def release(self, key: str) -> None:
        """Let go of a generation that nobody can read any more: it is cancelled if it runs, and forgotten."""
        self._producers.cancel(key)
        self._store.remove(key)

    async def drain(self, timeout: float, last_frames: float = 0.0) -> None:
        """Start nothing more; let what runs end and be read for so many seconds, then end it.

        What was ended then may be read for `last_frames` seconds more.
        """
        self.draining = True
        await self._producers.quiet(timeout)
        await self._producers.stop()
        await self._producers.quiet(last_frames)

    async def stop(self) -> None:
        """End what runs with the error `draining`, and start nothing more."""
        self.draining = True
        await self._producers.stop()

    async def close(self) -> None:
        """Stop, and close the upstream and the store."""
        await self.stop()
        await self._upstream.close()
        await self._store.close()

    async def _previous(self, caller: Caller, chat: Chat) -> tuple[list[Any], str | None]:
        """Return the messages that go in front of a chat's own, and the model they were said by."""
        if chat.previous_id is None:
            return [], None
        key, log = await self._find_any(caller, chat.previous_id, "previous_id")
        await self._producers.interrupt(key)
        if log.terminal is None:
            with ending(log) as over:  # a copy that nobody reads would be left
                await self._store.cancel(key)
                await over.wait()
        return conversation_of(log), log.start.model

    async def _find_any(self, caller: Caller, generation_id: str, param: str) -> tuple[str, Log]:
        """Return the key and log of a named generation of the principal, or any generation of the connection.

        Where one id is both, the one that runs is meant; of two, the connection's own.
        """
        found: list[tuple[str, Log]] = []
        for named in (False, True):
            key = caller.key(generation_id, named=named)
            try:
                log = await self._store.get(key)
            except ChatError:
                if not found:
                    raise
                continue
            if log:
                found.append((key, log))
                if log.terminal is None:
                    break
        if not found:
            raise ChatError("not_found", "There is no such generation.", param=param)
        return min(found, key=lambda pair: pair[1].terminal is not None)

    def _attached(self, caller: Caller, log: Log, chat: Chat) -> Log:
        if not is_same(log.request, chat):
            raise ChatError("id_conflict", "This id names another request already.", param="id")
        self._observe(Followed(caller.transport, 0))
        return log

    def _interrupted(self, caller: Caller, chat: Chat) -> int:
        """Return how many running generations a chat would end."""
        keys = [caller.key(chat.previous_id, named=named) for named in (True, False)] if chat.previous_id else []
        return any(key in self._producers for key in keys)

    def _may_refuse(self, caller: Caller, chat: Chat) -> bool:
        """Return whether a chat may be refused, counted or end another one: none of that for one that is there."""
        try:
            self._check_room(caller)
            self._check_model(chat.model)
        except ChatError:
            return True
        return chat.previous_id is not None or self._quota.limited

    def _check_drain(self) -> None:
        if self.draining:
            raise ChatError.of(DRAINING)

    def _check_room(self, caller: Caller, *, besides: int = 0) -> None:
        self._check_drain()
        if len(self._producers) - besides >= self._max_generations:
            raise ChatError("overloaded", "The server runs as many generations as it can.", retry_after=1)
        most = self._max_per_principal
        if most and self._producers.of(caller.principal) - besides >= most:
            raise ChatError("too_many_generations", f"At most {most} generations run at once.", retry_after=1)

    def _check_model(self, model: str | None) -> None:
        # The operator's own default is always allowed: the list limits what a client may name.
        if model is not None and self._models and not any(fnmatchcase(model, name) for name in self._models):
            raise ChatError("model_not_allowed", "This model may not be used here.", param="model")
