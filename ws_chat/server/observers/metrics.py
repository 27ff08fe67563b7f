"""Prometheus metrics (docs/operations.md lists them). With several workers, the sum over all of them.

The time between tokens is the mean over a generation, observed once at its end: a token costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from ws_chat.protocol.errors import CODES
from ws_chat.relay.events import (
    LIMITS,
    ConnectionClosed,
    ConnectionOpened,
    Followed,
    GenerationEnded,
    GenerationStarted,
    LimitReached,
    ReadingEnded,
    RequestRefused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ws_chat.relay.events import Event
    from ws_chat.stores.base import Store

DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable with the directory through which the workers of a server share their metrics."""

LAG_INTERVAL: Final = 0.5
FIRST_TOKEN_BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
BETWEEN_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
DURATION_BUCKETS: Final = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counts events in a registry of its own, so that two applications in one process are counted separately."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"ws_chat_{name}", text, ["door"], registry=registry, multiprocess_mode="livesum")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ws_chat_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"ws_chat_{name}_seconds", text, labels, registry=registry, buckets=buckets)

        self._connections = gauge("connections", "Open WebSockets and running SSE requests.")
        self._running = gauge("generations_running", "Running generations.")
        self._ended = counter("generations", "Ended generations: completed, cancelled, failed.", "door", "status")
        self._errors = counter("generation_errors", "Failed generations by error code.", "code")
        self._refused = counter("refused", "Refused connections, requests and frames by error code.", "door", "code")
        self._limits = counter("limits_reached", "Times that a limit had an effect.", "limit")
        self._follows = counter("follows", "Reads of an existing generation: after a seq, or from the start.", "from")
        self._produced = counter("deltas_produced", "Deltas received from the upstream.")
        self._deltas = counter("deltas_sent", "Deltas sent to readers.", "door")
        self._frames = counter("frames_sent", "Token frames sent: fewer than deltas where some were merged.", "door")
        self._bytes = counter("sent_bytes", "Bytes of frames sent.", "door")
        self._dropped = counter("connections_dropped", "Connections dropped by write or ping timeout.", "door")
        self._first = histogram("time_to_first_token", "Time to the first delta.", FIRST_TOKEN_BUCKETS, "door")
        self._between = histogram(
            "time_between_tokens", "Mean time between deltas of a generation.", BETWEEN_BUCKETS, "door"
        )
        self._total = histogram("generation_duration", "Time from request to end.", DURATION_BUCKETS, "door")
        # `labels()` costs more than counting: its results are kept.
        self._labelled = cache(lambda metric, *labels: metric.labels(*labels))
        for code in CODES:  # rate() would miss the first event of a series that starts with it
            self._labelled(self._errors, code)
            for transport in ("sse", "websocket"):
                self._labelled(self._refused, transport, code)
        for limit in LIMITS:
            self._labelled(self._limits, limit)
        text = "Whether the store of named generations can be reached."
        self._available = Gauge("ws_chat_store_available", text, registry=registry, multiprocess_mode="livemin")
        self._lag = histogram("event_loop_lag", "Delay of the event loop.", LAG_BUCKETS)

    def __call__(self, event: Event) -> None:
        labelled = self._labelled
        match event:
            case GenerationStarted():
                labelled(self._running, event.transport).inc()
            case GenerationEnded():
                self._generation(event)
            case ReadingEnded():
                labelled(self._deltas, event.transport).inc(event.deltas)
                labelled(self._frames, event.transport).inc(event.frames)
            case ConnectionOpened():
                labelled(self._connections, event.transport).inc()
            case ConnectionClosed():
                labelled(self._connections, event.transport).dec()
                labelled(self._bytes, event.transport).inc(event.sent)
                if event.dropped:
                    labelled(self._dropped, event.transport).inc()
            case Followed():
                labelled(self._follows, "seq" if event.after else "start").inc()
            case RequestRefused():
                labelled(self._refused, event.transport, event.code).inc()
            case LimitReached():
                labelled(self._limits, event.limit).inc()

    def _generation(self, event: GenerationEnded) -> None:
        labelled = self._labelled
        labelled(self._running, event.transport).dec()
        labelled(self._ended, event.transport, event.status).inc()
        self._produced.inc(event.deltas)
        labelled(self._total, event.transport).observe(event.total)
        if event.code:
            labelled(self._errors, event.code).inc()
        if event.first is not None:
            labelled(self._first, event.transport).observe(event.first)
            if event.deltas > 1:
                mean = (event.total - event.first) / (event.deltas - 1)
                labelled(self._between, event.transport).observe(mean)

    @contextmanager
    def measure(self, store: Store) -> Iterator[None]:
        """Measure the delay of the running event loop, and whether the store can be reached, until the block ends."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def schedule() -> asyncio.TimerHandle:
            due = loop.time() + LAG_INTERVAL
            return loop.call_at(due, observe, due)

        def observe(due: float) -> None:
            nonlocal timer
            self._lag.observe(max(0.0, loop.time() - due))
            self._available.set(store.available)
            timer = schedule()

        self._available.set(store.available)
        timer = schedule()
        try:
            yield
        finally:
            timer.cancel()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format; with a single process also those of Python and the process."""
        if directory := os.environ.get(DIRECTORY_VARIABLE):
            _remove_dead_workers(Path(directory))
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry) + generate_latest(REGISTRY)


def _remove_dead_workers(directory: Path) -> None:
    """Remove the gauges of workers that were killed."""
    for file in directory.glob("gauge_live*_*.db"):
        found = re.search(r"_(\d+)\.db$", file.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            multiprocess.mark_process_dead(int(found[1]), str(directory))  # type: ignore[no-untyped-call]
