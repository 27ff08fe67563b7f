"""What the client refuses to send: a mistake in a call raises where it is made, and never hangs."""

from __future__ import annotations

import asyncio
import math
import uuid
from types import MappingProxyType

import pytest
from support.service import HELLO

from ws_chat.client import InvalidRequestError, connect
from ws_chat.testing import Hang, Reply, Wait, text

pytestmark = pytest.mark.anyio

CIRCLE: list = []
CIRCLE.append(CIRCLE)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "parameters",
    [
        {"stop": {"a"}},
        {"stop": b"a"},
        {"tools": [object()]},
        {"user": uuid.uuid4()},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"user": "\ud800"},
        {"metadata": {"\udfff": 1}},
        {"metadata": {(1, 2): 1}},
        {"stop": CIRCLE},
        {"stop": DEEP},
        {"request_id": "a b"},
        {"request_id": ""},
        {"request_id": "a" * 129},
        {"request_id": "a\n"},
        {"request_id": 7},
        {"previous": ""},
        {"previous": "a b"},
        {"previous": 7},
        {"type": "cancel"},
        {"id": "r1"},
        {"previous_id": "r1"},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
async def test_an_invalid_request_is_raised_at_the_call(parameters):
    chat = connect("ws://127.0.0.1:1")
    with pytest.raises((TypeError, ValueError)) as wrong:
        chat.ask("hi", **parameters)
    assert str(wrong.value)
    await chat.close()


@pytest.mark.parametrize("messages", [b"hi", 7, None, HELLO[0], ["hi"], [HELLO], "\udc80"])
async def test_messages_are_text_or_mappings(messages):
    chat = connect("ws://127.0.0.1:1")
    with pytest.raises((TypeError, ValueError)):
        chat.ask(messages)
    await chat.close()


async def test_what_is_sent_is_what_was_there_at_the_call(service, fake):
    async with connect(service.url) as chat:
        messages = [MappingProxyType(HELLO[0])]
        name = uuid.uuid4()
        reply = chat.ask(messages, request_id=name)
        messages.clear()
        assert (await reply).id == str(name)
        assert (await chat.ask(iter(HELLO), previous=name)).text == "Hello"
    assert fake.requests[0].body["messages"] == HELLO


async def test_the_id_of_a_running_request_is_that_request(service, fake):
    more = asyncio.Event()
    fake.default = Reply([*text("a")[:2], Wait(more), *text("b")[1:]])
    async with connect(service.url) as chat:
        first = chat.ask(HELLO, request_id="r1", temperature=0.5, user="u")
        assert chat.ask("hi", user="u", request_id="r1", temperature=0.5) is first
        with pytest.raises(ValueError, match="r1"):
            chat.ask(HELLO, request_id="r1")
        await anext(aiter(first))
        assert chat.ask("hi", user="u", request_id="r1", temperature=0.5) is first
        more.set()
        assert (await first).text == "ab"
        again = chat.ask(HELLO, request_id="r1", temperature=0.5, user="u")
        assert again is not first
        assert (await again).text == "ab"
        with pytest.raises(InvalidRequestError) as conflict:
            await chat.ask("other", request_id="r1")
        assert conflict.value.code == "id_conflict"
    assert len(fake.requests) == 1


async def test_the_id_of_a_request_that_was_cancelled_unasked_is_free(service):
    async with connect(service.url) as chat:
        first = chat.ask(HELLO, request_id="r1")
        await first.cancel()
        assert (await chat.ask(HELLO, request_id="r1")).text == "Hello"
        assert first.status == "cancelled"


async def test_what_the_server_cannot_read_is_refused(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    deep: list = []
    for _ in range(500):
        deep = [deep]
    async with connect(service.url) as chat:
        running = chat.ask(HELLO)
        await anext(aiter(running))
        with pytest.raises(InvalidRequestError) as refused:
            await chat.ask(HELLO, stop=deep).end()
        assert refused.value.code == "invalid_json"
        assert running.status == "running"
