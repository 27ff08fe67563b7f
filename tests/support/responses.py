"""A reader of the Responses protocol's events: checks each with the SDK's own models, strictly, and their order."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, get_args

from openai.types.responses import Response, ResponseErrorEvent
from openai.types.responses.responses_server_event import ResponsesServerEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODELS = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponsesServerEvent)[0])
}
"""The SDK's model of each event, by its type."""
REQUIRED = {
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "error",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "temperature",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "reasoning",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
}
"""The fields of a response object (Open Responses)."""
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
_TEXTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


def check_response(response: dict[str, Any]) -> None:
    """Check a response object: its types, and that nothing is missing."""
    Response.model_validate(response, strict=True)
    assert set(response) == REQUIRED


class Events:
    """Follows the events of one response from its first one, and checks that each may come where it comes.

    `output` is joined from the deltas alone, `texts` are the pieces as they came.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.output: list[dict[str, Any]] = []
        self.ended = False
        self._closed: set[int] = set()

    def feed(self, event: dict[str, Any]) -> None:
        assert not self.ended, event
        _MODELS[event["type"]].model_validate(event, strict=True)
        kind = event["type"]
        number = event["sequence_number"]
        assert number > self.seen[-1]["sequence_number"] if self.seen else number == 0
        if len(self.seen) < 2:
            assert kind == ("response.created", "response.in_progress")[len(self.seen)]
            assert event["response"]["output"] == []
            assert event["response"]["status"] == "in_progress"
        self.seen.append(event)
        if "response" in event:
            check_response(event["response"])
        if kind in TERMINAL:
            self._end(event["response"])
        elif "output_index" in event:
            self._item(kind, event)
        elif kind == "error":
            self.ended = True

    def _item(self, kind: str, event: dict[str, Any]) -> None:
        index = event["output_index"]
        if kind == "response.output_item.added":
            assert index == len(self.output)
            assert event["item"]["status"] == "in_progress"
            self.output.append(copy.deepcopy(event["item"]))
            return
        item = self.output[index]
        assert index not in self._closed
        if kind == "response.output_item.done":
            done = {**event["item"]}
            item["status"] = done["status"]
            assert done["status"] in ("completed", "incomplete")
            if item.get("name") == "":  # an upstream may send the name of a call after its first piece
                item["name"] = done["name"]
            assert self._without_done(item) == done
            self._closed.add(index)
            return
        assert event["item_id"] == item["id"]
        name = kind.removeprefix("response.")
        if name == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif name == "function_call_arguments.done":
            assert item["arguments"] == event["arguments"]
        elif name == "custom_tool_call_input.delta":
            item["input"] += event["delta"]
        elif name == "custom_tool_call_input.done":
            assert item["input"] == event["input"]
        else:
            self._part(name, event, item["content"])

    def _part(self, name: str, event: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        index = event["content_index"]
        if name == "content_part.added":
            assert index == len(parts)
            assert all(part.get("done") for part in parts)
            parts.append({**event["part"]})
            return
        part = parts[index]
        assert index == len(parts) - 1
        assert not part.get("done")
        text = _TEXTS[part["type"]]
        if name.endswith(".delta"):
            assert name == f"{part['type']}.delta"
            part[text] += event["delta"]
            if "logprobs" in event:
                part["logprobs"] = [*part["logprobs"], *event["logprobs"]]
        elif name == "content_part.done":
            assert event["part"] == part
            part["done"] = True
        else:
            assert name == f"{part['type']}.done"
            assert event[text] == part[text]
            assert event.get("logprobs") == part.get("logprobs")

    def _end(self, response: dict[str, Any]) -> None:
        self.ended = True
        assert self._closed == set(range(len(self.output)))
        assert response["output"] == [self._without_done(item) for item in self.output]

    @staticmethod
    def _without_done(item: dict[str, Any]) -> dict[str, Any]:
        if "content" not in item:
            return item
        return {**item, "content": [{k: v for k, v in part.items() if k != "done"} for part in item["content"]]}

    @property
    def last(self) -> dict[str, Any]:
        assert self.ended
        return self.seen[-1]

    @property
    def response(self) -> dict[str, Any]:
        return self.last["response"]

    @property
    def kinds(self) -> list[str]:
        """The events' types without `response.`, neighbouring equal ones once."""
        kinds = [event["type"].removeprefix("response.") for event in self.seen]
        return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]


def follow(events: Iterable[dict[str, Any]]) -> Events:
    """Check all events of one response, which must be whole."""
    followed = Events()
    for event in events:
        followed.feed(event)
    assert followed.ended
    return followed


def check_error(event: dict[str, Any]) -> None:
    """Check an error frame of the WebSocket."""
    _MODELS[event["type"]].model_validate(event, strict=True)
    assert event["type"] == "error"
    if event.get("sequence_number") is not None:
        ResponseErrorEvent.model_validate({**event, **event["error"], "type": "error"})


def text_of(events: Iterable[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
