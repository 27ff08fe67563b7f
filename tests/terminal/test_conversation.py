"""A conversation: what goes over the wire for each turn."""

from __future__ import annotations

import json

import pytest

from ws_chat.client import ClientError, connect
from ws_chat.terminal.conversation import Conversation
from ws_chat.terminal.messages import is_forgotten
from ws_chat.testing import chunk, sse, text

pytestmark = pytest.mark.anyio


async def said(conversation, chat, question, *, whole=False):
    """Ask and hear; return the frame that was sent."""
    reply = conversation.ask(chat, question, whole=whole)
    sent = json.loads(reply._opening)
    try:
        await reply
    finally:
        conversation.record(question, reply)
    return sent


def contents(frame):
    return [message["content"] for message in frame["messages"]]


async def test_a_turn_sends_the_new_message_only(service):
    conversation = Conversation(system="Be brief.")
    async with connect(service.url) as chat:
        first = await said(conversation, chat, "one")
        second = await said(conversation, chat, "two")

    assert contents(first) == ["Be brief.", "one"]
    assert contents(second) == ["two"]
    assert second["previous_id"] == first["id"]


@pytest.mark.parametrize("change", [("system", "Be kind."), ("system", None), ("model", None)])
async def test_what_the_server_could_not_know_is_sent_with_all_the_rest(service, change):
    conversation = Conversation(system="Be brief.", model="m")
    async with connect(service.url) as chat:
        await said(conversation, chat, "one")
        setattr(conversation, *change)
        sent = await said(conversation, chat, "two")

    assert contents(sent)[-3:] == ["one", "Hello", "two"]
    assert "previous_id" not in sent


async def test_another_model_goes_on_from_the_last_answer(service, fake):
    conversation = Conversation()
    async with connect(service.url) as chat:
        await said(conversation, chat, "one")
        conversation.model = "m2"
        sent = await said(conversation, chat, "two")

    assert (contents(sent), fake.requests[1].body["model"]) == (["two"], "m2")


async def test_a_withdrawn_question_is_not_in_the_conversation(service, fake):
    conversation = Conversation()
    async with connect(service.url) as chat:
        first = await said(conversation, chat, "one")
        await said(conversation, chat, "two")
        assert conversation.pop_question() == "two"
        sent = await said(conversation, chat, "two again")

    assert sent["previous_id"] == first["id"]
    assert [message["content"] for message in fake.requests[-1].body["messages"]] == ["one", "Hello", "two again"]
    assert [Conversation().pop_question(), conversation.pop_question(), conversation.pop_question()] == [
        None,
        "two again",
        "one",
    ]


async def test_an_answer_that_failed_without_text_is_not_in_the_conversation(service, fake):
    conversation = Conversation()
    fake.refuse(400, "No.")
    fake.reply(text("Hel", finish_reason=None, done=False))
    async with connect(service.url) as chat:
        with pytest.raises(ClientError):
            await said(conversation, chat, "one")
        assert conversation.messages() == []
        assert conversation.pop_question() == "one"
        with pytest.raises(ClientError):
            await said(conversation, chat, "two")
        assert [message["content"] for message in conversation.messages()] == ["two", "Hel"]


async def test_nothing_goes_on_from_a_tool_call_without_its_result(service, fake):
    conversation = Conversation()
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    fake.reply([sse(chunk({"tool_calls": [call]})), sse(chunk({}, "tool_calls"))])
    async with connect(service.url) as chat:
        await said(conversation, chat, "one")
        sent = await said(conversation, chat, "two")

    assert contents(sent) == ["one", "two"]


async def test_a_server_that_forgets_is_distinguished_from_one_that_fails(serve):
    service = await serve(retention=0)
    conversation = Conversation()
    async with connect(service.url) as chat:
        await said(conversation, chat, "one")
        with pytest.raises(ClientError) as caught:
            await conversation.ask(chat, "two")
        sent = await said(conversation, chat, "two", whole=True)

    assert is_forgotten(caught.value)
    assert contents(sent) == ["one", "Hello", "two"]
