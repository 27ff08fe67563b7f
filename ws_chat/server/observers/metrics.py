"""Prometheus metrics (docs/operations.md names them all). With several workers, the sum over all of them.

The time between tokens is taken per generation, as the mean over its deltas: one observation at its end instead of one
for each token.
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
    ConnectionClosed,
    ConnectionOpened,
    Followed,
    GenerationEnded,
    GenerationStarted,
    ReadingEnded,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ws_chat.relay.events import Event

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers of one server keep their figures for each other."""

LAG_INTERVAL: Final = 0.5
FIRST: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
BETWEEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
TOTAL: Final = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counts what it is told in a registry of its own, so that two applications in one process do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ws_chat_{name}", text, labels, registry=registry, multiprocess_mode="livesum")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ws_chat_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"ws_chat_{name}_seconds", text, labels, registry=registry, buckets=buckets)

        self._connections = gauge("connections", "Open connections.", "door")
        self._running = gauge("generations_running", "Generations that run.", "door")
        self._ended = counter("generations", "Generations that ended: completed, cancelled, failed.", "door", "status")
        self._errors = counter("generation_errors", "Generations that failed.", "code")
        self._refused = counter("refused", "Connections, requests and frames that were refused.", "door", "code")
        self._follows = counter("follows", "Readers of what was there already: after a seq, or from the start.", "from")
        self._produced = counter("deltas_produced", "Deltas that came from upstreams.")
        self._deltas = counter("deltas_sent", "Deltas that were sent to readers.", "door")
        self._frames = counter("frames_sent", "Token frames that carried them: fewer, where some were merged.", "door")
        self._bytes = counter("sent_bytes", "Bytes of frames that were sent.", "door")
        self._dropped = counter("connections_dropped", "Peers that took nothing, or answered no ping.", "door")
        self._first = histogram("time_to_first_token", "From a request to its first delta.", FIRST, "door")
        self._between = histogram("time_between_tokens", "Mean time between the deltas of an answer.", BETWEEN, "door")
        self._total = histogram("generation_duration", "From a request to its end.", TOTAL, "door")
        # What `labels` returns, kept: it costs more than the counting.
        self._labelled = cache(lambda metric, *labels: metric.labels(*labels))
        for code in CODES:  # a rate sees nothing of a series that begins with its first event
            self._labelled(self._errors, code)
            for transport in ("sse", "websocket"):
                self._labelled(self._refused, transport, code)
        self._lag = histogram("event_loop_lag", "How late the event loop comes round.", LAG)

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
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
            case Refused():
                labelled(self._refused, event.transport, event.code).inc()

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
    def watching_the_loop(self) -> Iterator[None]:
        """Measure how late the running event loop comes round, as long as this lasts."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look(due: float) -> None:
            self._lag.observe(max(0.0, loop.time() - due))
            look_again()

        def look_again() -> None:
            nonlocal timer
            due = loop.time() + LAG_INTERVAL
            timer = loop.call_at(due, look, due)

        look_again()
        try:
            yield
        finally:
            timer.cancel()

    def text(self) -> bytes:
        """Return all of it in Prometheus's text format, with the process's own figures."""
        if folder := os.environ.get(FOLDER_VARIABLE):
            _forget_the_dead(Path(folder))
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry) + generate_latest(REGISTRY)


def _forget_the_dead(folder: Path) -> None:
    """Take away what workers that were killed left in the gauges."""
    for file in folder.glob("gauge_live*_*.db"):
        found = re.search(r"_(\d+)\.db$", file.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            multiprocess.mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]
