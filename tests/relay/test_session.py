from __future__ import annotations

import itertools

import pytest

from ws_chat import ChatError
from ws_chat.protocol.frames import Cancel, Chat, Ping, Pong, Position, Resume
from ws_chat.relay.session import CancelGeneration, FollowGeneration, SendFrame, Session, StartGeneration

CHAT = Chat.of({"messages": [{"role": "user"}]})


@pytest.fixture
def session() -> Session:
    numbers = itertools.count(1)
    return Session(limit=2, new_id=lambda: f"g{next(numbers)}")


def refused(session: Session, frame) -> tuple[str, str | None]:
    with pytest.raises(ChatError) as caught:
        session.receive(frame)
    return caught.value.info.code, caught.value.info.param


def started(session: Session, chat: Chat = CHAT) -> str:
    action = session.receive(chat)
    assert isinstance(action, StartGeneration)
    session.follows(action.id, named=chat.id is not None)
    return action.id


def test_a_chat_without_id_is_started_under_one_of_ours(session):
    assert session.receive(CHAT) == StartGeneration("g1", CHAT)


def test_a_chat_with_an_id_is_started_under_that(session):
    named = Chat(CHAT.body, id="r1")

    assert session.receive(named) == StartGeneration("r1", named)


def test_a_request_that_interrupts_needs_no_room_of_its_own(session):
    interrupted = started(session)
    started(session)
    assert refused(session, CHAT) == ("too_many_generations", None)
    assert refused(session, Chat(CHAT.body, previous_id="elsewhere")) == ("too_many_generations", None)
    assert isinstance(session.receive(Chat(CHAT.body, previous_id=interrupted)), StartGeneration)


def test_no_more_than_the_limit_are_followed_at_once(session):
    started(session)
    started(session, Chat(CHAT.body, id="r1"))

    assert refused(session, CHAT) == ("too_many_generations", None)
    assert refused(session, Resume("r2")) == ("too_many_generations", None)
    assert session.receive(Resume("r1", 5)) == FollowGeneration("r1", Position(5)), "that moves a reader"
    session.ended("g1")
    assert session.receive(Resume("r2")) == FollowGeneration("r2", Position(0))


def test_a_decision_alone_changes_nothing(session):
    for _ in range(5):
        session.receive(CHAT)

    assert refused(session, Cancel()) == ("invalid_request", "id")


def test_an_id_of_ours_cannot_name_another(session):
    started(session)

    assert refused(session, Chat(CHAT.body, id="g1")) == ("id_conflict", "id")


def test_cancel_by_id(session):
    started(session)
    started(session)

    assert session.receive(Cancel("g2")) == CancelGeneration("g2")
    assert session.receive(Cancel("r9")) == CancelGeneration("r9"), "it may be another connection's"
    session.ended("g2")
    assert session.receive(Cancel("g2")) == CancelGeneration("g2"), "it may run again, elsewhere"


def test_an_unnamed_generation_is_not_followed_again(session):
    started(session)
    assert refused(session, Resume("g1")) == ("not_found", "id")


def test_cancel_without_id_cancels_the_only_one(session):
    assert refused(session, Cancel()) == ("invalid_request", "id")
    started(session)
    assert session.receive(Cancel()) == CancelGeneration("g1")
    started(session)
    assert refused(session, Cancel()) == ("invalid_request", "id")


def test_ping(session):
    assert session.receive(Ping()) == SendFrame(Pong())
