"""The record of connections and generations: metrics, log lines, spans."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.processes import Running, program
from support.service import HELLO, both_paths
from support.waiting import until

from ws_chat.relay import events as observe
from ws_chat.relay.access import name_of
from ws_chat.server.observers.logs import JSONFormatter, Logs
from ws_chat.server.observers.metrics import Metrics
from ws_chat.server.observers.tracing import Tracing
from ws_chat.testing import Hang, Wait, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

ENDED = observe.GenerationEnded(
    transport="websocket",
    id="r1",
    principal="key-0123456789ab",
    named=True,
    requested_model="m",
    model="m-2026",
    status="failed",
    code="upstream_timeout",
    finish_reason=None,
    usage={"prompt_tokens": 5, "completion_tokens": 3},
    deltas=3,
    size=42,
    first=0.25,
    total=1.25,
    content=lambda: [{"role": "user", "content": "secret"}],
)


async def figures(service) -> dict[str, float]:
    """Return the metrics by name and labels, as Prometheus reads them."""
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.get(service.url + "/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = [line.rpartition(" ") for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines if name.startswith("ws_chat_")}


async def figures_when(service, name: str, holds) -> dict[str, float]:
    """Return the metrics as soon as the one of this name has a value for which `holds` is true."""
    seen: dict[str, float] = {}

    async def there() -> bool:
        nonlocal seen
        seen = await figures(service)
        return holds(seen.get(name))

    await until(there, f"the metric {name}")
    return seen


@both_paths
async def test_everything_is_counted_once(service, fake):
    go = asyncio.Event()
    first, *others = text("a", "b", "c")[1:]
    fake.reply([first, Wait(go), *others])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        running = await figures(service)
        assert running['ws_chat_connections{door="websocket"}'] == 1
        assert running['ws_chat_generations_running{door="websocket"}'] == 1
        go.set()
        await socket.until_end()
        await socket.send({"type": "resume", "id": "r1", "after": 1})
        await socket.until_end()
        await socket.ask("{")
        fake.reply([*text("x")[:2], Hang()])
        await socket.send({"messages": HELLO, "id": "r2"})
        await socket.receive()
        await socket.receive()
        await socket.send({"type": "cancel", "id": "r2"})
        await socket.until_end()
    fake.reply([b"data: nonsense\n\n"])
    assert (await service.post()).status_code == 502

    seen = await figures_when(service, 'ws_chat_connections{door="websocket"}', lambda count: count == 0)
    assert seen['ws_chat_generations_running{door="websocket"}'] == 0
    assert seen['ws_chat_generations_total{door="websocket",status="completed"}'] == 1
    assert seen['ws_chat_generations_total{door="websocket",status="cancelled"}'] == 1
    assert seen['ws_chat_generations_total{door="sse",status="failed"}'] == 1
    assert seen['ws_chat_generation_errors_total{code="upstream_malformed"}'] == 1
    assert seen['ws_chat_refused_total{code="invalid_json",door="websocket"}'] == 1
    assert seen['ws_chat_follows_total{from="seq"}'] == 1
    assert seen["ws_chat_deltas_produced_total"] == 4
    assert seen['ws_chat_deltas_sent_total{door="websocket"}'] == 3 + 2 + 1
    assert 3 <= seen['ws_chat_frames_sent_total{door="websocket"}'] <= 6
    assert seen['ws_chat_sent_bytes_total{door="websocket"}'] > 500
    assert seen['ws_chat_time_to_first_token_seconds_count{door="websocket"}'] == 2
    assert seen['ws_chat_time_between_tokens_seconds_count{door="websocket"}'] == 1
    assert seen['ws_chat_generation_duration_seconds_count{door="websocket"}'] == 2


@both_paths
async def test_what_has_not_happened_yet_is_counted_as_none(service):
    """A rate sees nothing of a series that begins with its first event."""
    async with httpx.AsyncClient(timeout=None) as client:
        figures = (await client.get(service.url + "/metrics")).text
    assert 'ws_chat_generation_errors_total{code="internal_error"} 0.0' in figures
    assert 'ws_chat_refused_total{code="overloaded",door="websocket"} 0.0' in figures


async def test_bytes_of_both_transports_are_those_that_were_sent(service):
    body = (await service.post(query="?format=frames")).content
    await service.post(query="?format=frames")
    seen = await figures_when(service, 'ws_chat_connections{door="sse"}', lambda count: count == 0)
    assert abs(seen['ws_chat_sent_bytes_total{door="sse"}'] - 2 * len(body)) < 20, "timings differ"


async def test_the_lag_of_the_loop_is_measured(service):
    await figures_when(service, "ws_chat_event_loop_lag_seconds_count", bool)


KEY = "a-very-secret-key"


@pytest.fixture(scope="module")
async def workers() -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """Two workers of a server, and what asks each time over a connection of its own: either of them."""
    async with program("ws-chat", "serve", "--port", "0", "--workers", "2", WS_CHAT_API_KEYS=KEY) as server:
        url = f"http://127.0.0.1:{await server.port()}"
        headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=None) as client:
            yield server, client


async def test_several_workers_are_one(workers):
    _, client = workers

    async def completed() -> float:
        figures = (await client.get("/metrics")).text
        found = re.search(r'generations_total\{door="sse",status="completed"\} (.*)', figures)
        return float(found[1]) if found else 0

    before = await completed()
    for _ in range(10):
        response = await client.post("/v1/chat/stream", json={"messages": HELLO, "model": "demo-fast"})
        assert response.status_code == 200
    assert await completed() == before + 10


async def test_a_server_that_no_terminal_reads_logs_lines_of_json(workers):
    server, client = workers
    body = {"messages": [{"role": "user", "content": "tell nobody"}], "model": "demo-fast", "id": "r1"}
    assert (await client.post("/v1/chat/stream", json=body)).status_code == 200
    await server.until_logged("Generation r1")
    lines = [json.loads(line) for line in server.log.splitlines()]
    (line,) = [line for line in lines if line.get("id") == "r1"]
    assert (line["principal"], line["status"], line["door"]) == (name_of(KEY), "completed", "sse")
    assert line["bytes"] > 100
    assert "tell nobody" not in server.log
    assert KEY not in server.log


async def test_an_observer_that_fails_affects_no_other(caplog):
    seen = []

    def broken(_) -> None:
        raise ValueError("no")

    observe.Observers([broken, seen.append])(observe.ConnectionOpened("sse"))
    assert seen == [observe.ConnectionOpened("sse")]
    assert "An observer failed at ConnectionOpened" in caplog.text


def test_every_metric_is_documented():
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    for family in Metrics().registry.collect():
        assert f"`{family.name}" in page, family.name


def test_a_line_has_the_event_and_not_the_contents(caplog):
    caplog.set_level(logging.INFO, "ws_chat.generations")
    Logs()(ENDED)
    line = json.loads(JSONFormatter().format(caplog.records[0]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "ws_chat.generations",
        "message": "Generation r1 failed: upstream_timeout, 3 deltas in 1250 ms",
        "id": "r1",
        "principal": "key-0123456789ab",
        "door": "websocket",
        "model": "m-2026",
        "status": "failed",
        "code": "upstream_timeout",
        "deltas": 3,
        "ttft_ms": 250.0,
        "total_ms": 1250.0,
        "bytes": 42,
    }


def test_content_is_logged_only_where_it_is_switched_on(caplog):
    Logs(content=True)(ENDED)
    assert json.loads(JSONFormatter().format(caplog.records[0]))["messages"] == [{"role": "user", "content": "secret"}]


def test_a_generation_is_a_span():
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    Tracing(provider)(ENDED)
    (span,) = spans.get_finished_spans()
    assert span.name == "chat m"
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m-2026",
        "gen_ai.conversation.id": "r1",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "error.type": "upstream_timeout",
        "ws_chat.door": "websocket",
        "ws_chat.status": "failed",
    }
    assert not span.status.is_ok
    assert round((span.end_time - span.start_time) / 1e9, 3) == 1.25
    assert span.events[0].name == "gen_ai.first_token"
