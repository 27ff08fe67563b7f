"""The AsyncAPI document is valid, by its own project's parser, and true: every frame is one that it describes."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import httpx
import pytest
from support.processes import ROOT, lacking, need, output
from support.responses import response_socket
from support.service import HELLO

from ws_chat.protocol.frames import InvalidFrameError, decode
from ws_chat.server import describe
from ws_chat.server.responses.types import EVENTS

if TYPE_CHECKING:
    import jsonschema_rs

pytestmark = pytest.mark.anyio

MODULES = ROOT / ".venv/node/node_modules"
SCHEMAS = json.loads(describe.path("asyncapi").read_text())["components"]["schemas"]
BY_TYPE = {"start": "Start", "token": "TokenFrame", "done": "Done", "pong": "Pong", "goaway": "GoAway"}


@cache
def validator(name: str) -> jsonschema_rs.Validator:
    import jsonschema_rs

    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}})


def check(frame: dict) -> None:
    """Check that a frame of the server is as described, and one kind of frame only."""
    name = BY_TYPE.get(frame["type"]) or ("Failed" if "seq" in frame else "Refused")
    validator(name).validate(frame)
    others = set(BY_TYPE.values()) - {name}
    assert not [other for other in others if validator(other).is_valid(frame)]


async def test_its_parser_finds_it_valid(service):
    if not (MODULES / "@asyncapi/parser").is_dir():
        lacking("@asyncapi/parser is not installed")
    url = service.url + "/asyncapi.json"
    status, out, err = await output(need("node"), str(ROOT / "tests/server/describe/asyncapi.mjs"), str(MODULES), url)

    assert status == 0, err.decode()
    found = json.loads(out)
    assert found["diagnostics"] == []
    chat = {"chat", "resume", "cancel", "ping", "goaway"}
    assert set(found["operations"]) == chat | {"respond", "cancelResponse", "steer", "processed"}


async def test_every_frame_is_as_described(serve):
    service = await serve(openai_api_key=None, openai_base_url=None, upstream_timeout=0.2, drain_timeout=0)
    async with service.socket() as socket:
        for model in ("demo-fast", "demo-tools", "demo-reasoning", "demo-error", "demo-break", "demo-silent"):
            for frame in await socket.chat(model=model):
                check(frame)
        for frame in ({"type": "ping"}, {"type": "cancel", "id": "x"}, "no JSON", {"type": "odd"}, []):
            check(await socket.ask(frame))
        await socket.send({"messages": HELLO, "model": "demo-slow", "id": "r1"})
        check(await socket.receive())
        await socket.send({"type": "cancel", "id": "r1"})
        for frame in await socket.until_end("r1"):
            check(frame)
        service.connections.drain(0)
        check(await socket.receive())


async def test_every_event_of_a_response_is_as_described(serve):
    service = await serve(openai_api_key=None, openai_base_url=None, upstream_timeout=0.2, drain_timeout=0)
    names = {str(kind.__struct_config__.tag): kind.__name__ for kind in EVENTS}
    seen = set()
    async with response_socket(service) as client:
        for lane, model in enumerate(("demo-fast", "demo-tools", "demo-reasoning", "demo-error", "demo-break")):
            await client.create(model=model, stream_id=str(lane), tools=[{"type": "custom", "name": "get_time"}])
            event = {"type": ""}
            while event["type"] not in ("response.completed", "response.failed", "error"):
                event = await client.receive()
                seen.add(event["type"])
                validator(names[event["type"]]).validate(event)
        for frame in (
            {"type": "response.steer", "input": "hi", "previous_response_id": "resp_1"},
            {"type": "response.cancel"},
            "no JSON",
        ):
            event = await client.ask(frame)
            validator(names[event["type"]]).validate(event)
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("ChatRequest", {"messages": HELLO}),
        (
            "ChatRequest",
            {"type": "chat", "messages": HELLO, "id": "r1", "previous_id": "r0", "model": "m", "stream": True},
        ),
        (
            "ChatRequest",
            {"messages": [{"role": "tool", "content": None, "tool_call_id": "c"}], "temperature": 0.5, "n": 1},
        ),
        ("Messages", HELLO),
        ("Resume", {"type": "resume", "id": "r1"}),
        ("Resume", {"type": "resume", "id": "r1", "after": 7}),
        ("Cancel", {"type": "cancel"}),
        ("Cancel", {"type": "cancel", "id": "r1"}),
        ("Ping", {"type": "ping"}),
    ],
)
def test_described_frames_are_accepted(name, frame):
    validator(name).validate(frame)
    decode(json.dumps(frame))


@pytest.mark.parametrize(
    "frame",
    [
        {},
        [],
        {"messages": []},
        {"messages": [{"content": "hi"}]},
        {"messages": HELLO, "id": None},
        {"messages": HELLO, "id": "a b"},
        {"messages": HELLO, "model": ""},
        {"messages": HELLO, "model": "m" * 257},
        {"messages": HELLO, "stream": False},
        {"messages": HELLO, "n": 2},
        {"type": "resume"},
        {"type": "resume", "id": "r1", "after": -1},
        {"type": "cancel", "id": None},
        {"type": "odd"},
    ],
)
def test_undescribed_frames_are_refused(frame):
    names = ("Messages", "ChatRequest", "Cancel", "Resume", "Ping")
    assert not [name for name in names if validator(name).is_valid(frame)]
    with pytest.raises(InvalidFrameError):
        decode(json.dumps(frame))


async def test_it_names_the_server_that_was_asked(service):
    async with httpx.AsyncClient(timeout=None) as client:
        document = (await client.get(service.url + "/asyncapi.json")).json()

    assert document["servers"]["this"] == {"host": service.url.removeprefix("http://"), "protocol": "ws"}
    assert document["channels"]["chat"]["address"] == "/v1/chat/ws"
