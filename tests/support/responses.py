"""A reader of the Responses protocol's events: checks each with the SDK's own models, strictly, and their order."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any, get_args

import httpx
from openai.types.responses import Response, ResponseErrorEvent
from openai.types.responses.responses_server_event import ResponsesServerEvent
from support.service import events
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from support.service import Service

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


def check_joined(alone: list[dict[str, Any]], came: list[dict[str, Any]], after: int = -1) -> None:
    """Check that events are those after a `sequence_number`, of which only neighbouring pieces of a text are joined."""
    position = after
    for event in came:
        joined = alone[position + 1 : event["sequence_number"] + 1]
        expected = {**joined[-1]}
        if len(joined) > 1:
            assert len({(each["type"], each["item_id"], each.get("content_index")) for each in joined}) == 1
            expected["delta"] = "".join(each["delta"] for each in joined)
            if "logprobs" in expected:
                expected["logprobs"] = [entry for each in joined for entry in each["logprobs"]]
        assert event == expected
        position = event["sequence_number"]
    assert position == max(after, len(alone) - 1)


def check_error(event: dict[str, Any]) -> None:
    """Check an error frame of the WebSocket."""
    _MODELS[event["type"]].model_validate(event, strict=True)
    assert event["type"] == "error"
    if event.get("sequence_number") is not None:
        ResponseErrorEvent.model_validate({**event, **event["error"], "type": "error"})


def text_of(events: Iterable[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


class ResponseClient:
    """A client of a server's Responses protocol that knows nothing but JSON: a socket, and HTTP requests."""

    def __init__(self, service: Service, connection: ClientConnection) -> None:
        self.service = service
        self.connection = connection

    async def send(self, frame: Any) -> None:
        await self.connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def create(self, **fields: Any) -> None:
        await self.send({"type": "response.create", "input": "hi", **fields})

    async def receive(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(await self.connection.recv())
        if event["type"] == "error":
            check_error(event)
        return event

    async def ask(self, frame: Any) -> dict[str, Any]:
        """Send a frame and return the next event."""
        await self.send(frame)
        return await self.receive()

    async def until_end(self, lane: str | None = None) -> Events:
        """Return the events of the response that runs in a lane, up to its last one; others are passed over."""
        events = Events()
        while not events.ended:
            event = await self.receive()
            if event.pop("stream_id", None) == lane:
                events.feed(event)
        return events

    async def respond(self, **fields: Any) -> Events:
        await self.create(**fields)
        return await self.until_end(fields.get("stream_id"))


@contextlib.asynccontextmanager
async def response_socket(service: Service, **connecting: Any) -> AsyncIterator[ResponseClient]:
    url = service.url.replace("http", "ws") + "/v1/responses"
    async with connect(url, max_size=None, open_timeout=None, **connecting) as connection:
        yield ResponseClient(service, connection)


async def http(service: Service, method: str, path: str = "", body: Any = None, **headers: str) -> httpx.Response:
    """Send a request to `/v1/responses` + `path`."""
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.request(method, f"{service.url}/v1/responses{path}", content=content, headers=headers)


async def post(service: Service, **fields: Any) -> httpx.Response:
    return await http(service, "POST", body={"input": "hi", **fields})


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of an event stream, which must be named by their type, without ids, and end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *found, done = events(response.content)
    assert done == {"data": "[DONE]"}
    decoded = []
    for event in found:
        assert set(event) == {"event", "data"}
        decoded.append(json.loads(event["data"]))
        assert decoded[-1]["type"] == event["event"]
    return decoded
