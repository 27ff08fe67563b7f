"""Starts, finds, cancels and drains generations, and checks which caller may do so."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec
from msgspec import UNSET, Raw

from ws_chat.protocol.errors import DRAINING, GONE, START_TIMED_OUT, UNREACHABLE, ChatError
from ws_chat.protocol.frames import FROM_START, MAX_VALUES, Failed, Start, has_too_many_values
from ws_chat.relay.access import ROUTING_FIELDS, Quota, Throttle, ThrottledError
from ws_chat.relay.conversation import Answer, conversation, encode_request, is_same_request, join_lists, messages_of
from ws_chat.relay.events import Followed, Observers, ReadingEnded
from ws_chat.relay.runner import Runner
from ws_chat.stores.base import LogExistsError
from ws_chat.upstreams.base import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from ws_chat.protocol.frames import Chat, Position
    from ws_chat.relay.access import Caller
    from ws_chat.relay.events import Observer
    from ws_chat.relay.reader import Reader
    from ws_chat.stores.base import GenerationKey, Log, Store
    from ws_chat.upstreams.base import Upstream

    Check: TypeAlias = Callable[["Log | None", bytes], None]
    """Called before the first change, with the log of the previous generation and its messages. May raise ChatError."""

START_TIMEOUT: Final = 8.5
"""Seconds in which a generation is started or refused: clients are promised an answer within 10 s."""
EPOCH_BYTES: Final = 6
JOINED_AT_ONCE: Final = 512
"""Deltas that are joined in one turn of the event loop, when a conversation is continued."""


class _Found(NamedTuple):
    key: GenerationKey
    log: Log


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
        throttle: Throttle | None = None,
        max_bytes: int = 4 * 1024 * 1024,
        max_answer_bytes: int = 64 * 1024 * 1024,
        resume_window: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        observe: Observer | None = None,
    ) -> None:
        """Allow the models that match one of the shell patterns `models` (none: any). `clock` returns seconds.

        `max_bytes` limits a conversation, including the messages that `previous_id` adds, and `max_answer_bytes` the
        deltas of an answer. A named generation without a reader for `resume_window` seconds is cancelled.
        """
        self._upstream = upstream
        self._store = store
        self._models = models
        self._quota = quota or Quota(None)
        self.throttle = throttle or Throttle(None)
        self._max_bytes = max_bytes
        self._observe = observe or Observers()
        self._runner = Runner(
            upstream,
            self._observe,
            max_generations=max_generations,
            max_generations_per_principal=max_generations_per_principal,
            max_answer_bytes=max_answer_bytes,
            resume_window=resume_window,
            clock=clock,
            shared=store.shared,
        )
        self._joining = asyncio.Lock()
        self._starting: WeakValueDictionary[GenerationKey, asyncio.Lock] = WeakValueDictionary()
        self.draining = False

    def check_ready(self) -> None:
        """Raise ChatError (`draining`) while new requests should go elsewhere."""
        self._check_drain()

    async def open(self) -> None:
        """Open the store, which serves other processes if it is shared."""
        await self._store.open(self._runner)

    @property
    def running(self) -> int:
        return self._runner.running

    async def start(self, caller: Caller, generation_id: str, chat: Chat, position: Position = FROM_START) -> Log:
        """Start a generation, or find the one that the same named request has started already; return its log.

        With a `position`, which a client has from an earlier attempt, never start one. Does not wait for the upstream.
        Raises ChatError (`id_conflict`, `generation_gone`, `not_found`, `model_not_allowed`, `too_large`,
        `rate_limited`, `too_many_generations`, `overloaded`, `draining`; `invalid_request` as `find`).
        """
        key = caller.key(generation_id, named=chat.id is not None)
        # Of two equal named requests at once, only one makes a reservation.
        lock = self._starting.setdefault(key, asyncio.Lock()) if key.named else nullcontext()
        try:
            async with asyncio.timeout(START_TIMEOUT), lock:
                log = await self._store.get(key, position.seq) if key.named else None
                if log is None:
                    if position != FROM_START:
                        raise ChatError.of(GONE)
                    try:
                        return await self._start(caller, key, chat)
                    except LogExistsError:  # another process was just faster
                        log = await self._store.get(key)
        except TimeoutError:
            log = None
        if log is None:
            raise ChatError.of(START_TIMED_OUT)
        await self.throttle.count(caller, sum(memoryview(value).nbytes for value in chat.body.values()))
        if not is_same_request(log.request, chat):
            raise ChatError("id_conflict", "This id is already used by a different request.", param="id")
        _check(log, position)
        self._observe(Followed(caller.transport, position.seq))
        return log

    async def create(self, caller: Caller, generation_id: str, chat: Chat, check: Check) -> Log:
        """Start a generation under a new random id; `check` may refuse it. Raises ChatError as `start` does."""
        key = caller.key(generation_id, named=chat.id is not None)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return await self._start(caller, key, chat, check)
        except TimeoutError:
            raise ChatError.of(START_TIMED_OUT) from None

    async def _start(self, caller: Caller, key: GenerationKey, chat: Chat, check: Check | None = None) -> Log:
        """Validate, reserve, create the log, interrupt the previous generation, run.

        Every check comes before the first change; if a later step fails, the reservation and the log are released.
        """
        self._check_drain()
        if self._models and (field := next(filter(ROUTING_FIELDS.__contains__, chat.body), None)):
            message = f'"{field}" could choose another model or server, and this server allows only some models.'
            raise ChatError("model_not_allowed", message, param=field)
        # The operator's own default is always allowed: the list limits what a client may name.
        if chat.model and self._models and not any(fnmatchcase(chat.model, pattern) for pattern in self._models):
            raise ChatError("model_not_allowed", "This model is not allowed.", param="model")
        previous = await self._find_any(caller, chat.previous_id, "previous_id") if chat.previous_id else None
        joined = previous.log.last if previous else 0
        before = await self._conversation(previous.log) if previous else b""
        if check:
            check(previous.log if previous else None, before)
        request = encode_request(chat, before)
        if previous:
            self._check_size(messages_of(request))
        model = self._upstream.resolve(chat.model or (previous.log.start.model if previous else None))
        with self._runner.reserve(caller.principal, replacing=previous and previous.key):
            async with self._quota.counted(caller.principal):
                # A new epoch: a position in an earlier generation with this id is none in this one.
                epoch = secrets.token_hex(EPOCH_BYTES) if key.named else UNSET
                log = await self._store.create(key, Start(key.id, 0, model, epoch), request)
                try:
                    if previous and previous.log.terminal is None:
                        await self._interrupt(previous)
                    if previous and previous.log.last > joined:
                        log.replace_request(encode_request(chat, await self._conversation(previous.log)))
                except BaseException:
                    self._store.remove(key)
                    log.interrupt(UNREACHABLE)
                    raise
                messages = messages_of(log.request)
                if chat.instructions:
                    front = msgspec.json.encode([{"role": "system", "content": chat.instructions}])
                    messages = join_lists(front, messages)
                body = {**chat.body, "model": model, "messages": Raw(messages)}
                self._runner.run(caller, key, log, Request(body), generate=chat.generate)
                return log

    async def find(self, caller: Caller, generation_id: str, position: Position = FROM_START) -> Log:
        """Return the log of a named generation, to be read after a position.

        Raises ChatError: `not_found`; `generation_gone` for the epoch of another generation; `invalid_request` past the
        last seq, unless the generation was lost: its replica may have sent more than it had logged; `rate_limited`.
        """
        log = await self.get(caller, generation_id, position.seq)
        _check(log, position)
        self.follow(caller, position.seq)
        return log

    def follow(self, caller: Caller, after: int) -> None:
        """Report that an existing generation is read."""
        self._observe(Followed(caller.transport, after))

    async def get(self, caller: Caller, generation_id: str, after: int = 0) -> Log:
        """Return the log of a named generation. Raises ChatError (`not_found`, `overloaded`, `rate_limited`)."""
        await self.throttle.count(caller)
        log = await self._store.get(caller.key(generation_id, named=True), after)
        if log is None:
            raise ChatError("not_found", "There is no such generation.", param="id")
        return log

    async def count_refusal(self, caller: Caller, error: ChatError, size: int) -> ChatError:
        """Count a refused request of `size` bytes; return the error with which it is answered."""
        if not isinstance(error, ThrottledError) and error.info.status < 500:
            try:
                await self.throttle.count(caller, size)
            except ThrottledError as throttled:
                return throttled
        return error

    def attach(self, key: GenerationKey, reader: Reader) -> None:
        """Count a reader of a generation, which keeps it from being cancelled."""
        self._runner.attach(key, reader.log)

    def detach(self, caller: Caller, key: GenerationKey, reader: Reader) -> None:
        """Stop counting a reader. After the last one the resume window opens."""
        self._runner.detach(key, reader.log)
        self._observe(ReadingEnded(caller.transport, reader.deltas, reader.frames))

    async def cancel(self, caller: Caller, generation_id: str) -> None:
        """Cancel a generation: its upstream request is closed, then its log ends. One that has ended stays as it is.

        Raises ChatError (`not_found`, `overloaded`).
        """
        found = await self._find_any(caller, generation_id, "id")
        if found.log.terminal is None and not self._runner.cancel(found.key):
            await self._store.cancel(found.key)

    @contextmanager
    def reading(self, key: GenerationKey, log: Log) -> Iterator[None]:
        """Count the block as a reader of a generation."""
        self._runner.attach(key, log)
        try:
            yield
        finally:
            self._runner.detach(key, log)

    def abandon(self, key: GenerationKey, *, unless_read: bool = False) -> None:
        """Cancel a generation of this process whose client has disconnected; its log is kept."""
        self._runner.cancel(key, unless_read=unless_read)

    async def end(self, key: GenerationKey, log: Log) -> None:
        """Cancel a generation, and wait for its end. Raises ChatError (`overloaded`)."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._interrupt(_Found(key, log))
        except TimeoutError:
            raise ChatError("overloaded", "The generation did not end in time.", retry_after=1) from None

    async def forget(self, key: GenerationKey, log: Log) -> None:
        """Cancel a named generation, wait for its end, and remove it. Raises ChatError (`overloaded`)."""
        if log.terminal is None:
            await self.end(key, log)
        await self._store.forget(key)

    def release(self, key: GenerationKey) -> None:
        """Cancel and remove a generation that can no longer be reached."""
        self._runner.cancel(key)
        self._store.remove(key)

    async def drain(self, timeout: float) -> None:
        """Refuse new generations; wait `timeout` seconds for the running ones and their readers, then end them.

        Does not wait for readers that can go on at another process.
        """
        self.draining = True
        await self._runner.quiet(timeout)
        await self._runner.stop()

    async def unread(self, timeout: float) -> None:
        """Wait `timeout` seconds until every reader has received its terminal frame."""
        await self._runner.unread(timeout)

    async def stop(self) -> None:
        """Refuse new generations, and end the running ones with the error `draining`."""
        self.draining = True
        await self._runner.stop()

    async def close(self) -> None:
        """Stop, and close the upstream and the store."""
        await self.stop()
        await self._upstream.close()
        await self._store.close()

    async def _find_any(self, caller: Caller, generation_id: str, param: str) -> _Found:
        """Return a named generation of the principal, or any generation of the connection.

        If one id is both, the running one is returned; if both run, or none, the connection's own.
        """
        found: list[_Found] = []
        for named in (False, True):
            key = caller.key(generation_id, named=named)
            try:
                log = await self._store.get(key)
            except ChatError:
                if not found:
                    raise
                continue
            if log:
                found.append(_Found(key, log))
                if log.terminal is None:
                    break
        if not found:
            raise ChatError("not_found", "There is no such generation.", param=param)
        return min(found, key=lambda one: one.log.terminal is not None)

    async def _conversation(self, log: Log) -> bytes:
        """Return the messages of a log's conversation, with its answer so far. Raises ChatError (`not_found`, `too_large`).

        A long answer is joined over many turns of the event loop; only one is joined at a time.
        """
        messages = messages_of(log.request)
        if not messages:
            message = "This generation failed before its answer began, so its messages are not kept. Send them again."
            raise ChatError("not_found", message, param="previous_id")
        answer = Answer()
        deltas = log.after(0, JOINED_AT_ONCE)
        answer.add(deltas)
        if (seq := len(deltas)) < log.last:
            async with self._joining:
                while deltas := log.after(seq, JOINED_AT_ONCE):
                    seq += len(deltas)
                    answer.add(deltas)
                    if len(messages) + answer.size > self._max_bytes:
                        raise self._too_large()
                    await asyncio.sleep(0)
        return conversation(messages, answer.message())

    def _check_size(self, messages: bytes) -> None:
        # Deltas that the previous generation gets later, while it is being interrupted, are not counted.
        if len(messages) > self._max_bytes:
            raise self._too_large()
        if has_too_many_values(messages):
            message = f"A conversation has at most {MAX_VALUES} JSON values."
            raise ChatError("too_large", message, param="previous_id", limit="values")

    def _too_large(self) -> ChatError:
        message = f"A conversation has at most {self._max_bytes} bytes."
        return ChatError("too_large", message, param="previous_id", limit="max_frame_bytes")

    async def _interrupt(self, found: _Found) -> None:
        """Cancel a generation, here or in another process, and wait for its end."""
        key, log = found
        with end_of(log) as ended:  # before the cancel: a shared store drops its copy of a log that has no watcher
            if not self._runner.cancel(key):
                await self._store.cancel(key)
            await ended.wait()

    def _check_drain(self) -> None:
        if self.draining:
            raise ChatError.of(DRAINING)


@contextmanager
def end_of(log: Log) -> Iterator[asyncio.Event]:
    """Watch a log for its end, or a fault, which sets the event."""
    ended = asyncio.Event()

    def wake(*_: object) -> None:
        if log.terminal or log.fault:
            ended.set()

    log.watch(wake)
    try:
        wake()
        yield ended
    finally:
        log.unwatch(wake)


def is_lost(log: Log) -> bool:
    """Return whether the replica that produced a log was lost."""
    return isinstance(log.terminal, Failed) and log.terminal.error.code == "generation_lost"


def _check(log: Log, position: Position) -> None:
    if position.epoch not in (None, log.start.epoch):
        raise ChatError.of(GONE)
    if position.seq > (log.terminal.seq if log.terminal else log.last) and not is_lost(log):
        raise ChatError("invalid_request", '"after" is past the generation\'s last seq.', param="after")
