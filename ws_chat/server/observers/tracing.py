"""OpenTelemetry traces: one span for each generation, by the semantic conventions for generative AI.

Needs `ws-chat[otel]`. OpenTelemetry's own variables (`OTEL_…`) configure the exporter.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from ws_chat.relay.events import Event, GenerationEnded


class Tracing:
    """Records a span for each generation when it has ended, with `provider` or else the global one."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("ws_chat", tracer_provider=provider)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, GenerationEnded):
            return
        if isinstance(self._provider or trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return  # no exporter is configured
        usage = event.usage or {}
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": event.requested_model,
            "gen_ai.response.model": event.model,
            "gen_ai.conversation.id": event.id,
            "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
            "gen_ai.response.finish_reasons": (event.finish_reason,) if event.finish_reason else None,
            "error.type": event.code,
            "ws_chat.door": event.transport,
            "ws_chat.status": event.status,
        }
        end = time.time_ns()
        start = end - round(event.total * 1e9)
        span = self._tracer.start_span(
            f"chat {event.requested_model}",
            kind=SpanKind.CLIENT,
            start_time=start,
            attributes={name: value for name, value in attributes.items() if value is not None},
        )
        if event.first is not None:
            span.add_event("gen_ai.first_token", timestamp=start + round(event.first * 1e9))
        if event.code:
            span.set_status(Status(StatusCode.ERROR, event.code))
        span.end(end)
