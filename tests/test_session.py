from __future__ import annotations

import itertools

import pytest

from ws_chat.errors import ChatError
from ws_chat.frames import Cancel, Chat, Ping, Pong, Resume
from ws_chat.session import REMEMBERED, CancelGeneration, Reply, Session, StartGeneration

CHAT = Chat({"messages": [{"role": "user"}]})


@pytest.fixture
def session() -> Session:
    numbers = itertools.count(1)
    return Session(limit=2, new_id=lambda: f"g{next(numbers)}")


def refused(session: Session, frame) -> tuple[str, str | None]:
    with pytest.raises(ChatError) as caught:
        session.receive(frame)
    return caught.value.info.code, caught.value.info.param


def test_a_chat_is_started_under_an_id_of_ours(session):
    assert session.receive(CHAT) == StartGeneration("g1", CHAT)
    assert session.receive(CHAT) == StartGeneration("g2", CHAT)


def test_no_more_than_the_limit_run_at_once(session):
    session.receive(CHAT)
    session.receive(CHAT)

    assert refused(session, CHAT) == ("too_many_generations", None)
    session.ended("g1")
    assert session.receive(CHAT) == StartGeneration("g3", CHAT)


def test_what_is_not_there_yet_says_so(session):
    assert refused(session, Chat(CHAT.body, id="r1")) == ("invalid_request", "id")
    assert refused(session, Chat(CHAT.body, previous_id="r1")) == ("invalid_request", "previous_id")
    assert refused(session, Resume("r1")) == ("invalid_request", "id")
    assert refused(session, Cancel()) == ("invalid_request", "id"), "a refused chat runs nothing"


def test_cancel_by_id(session):
    session.receive(CHAT)
    session.receive(CHAT)

    assert session.receive(Cancel("g2")) == CancelGeneration("g2")
    assert refused(session, Cancel("g9")) == ("not_found", "id")
    session.ended("g2")
    assert session.receive(Cancel("g2")) is None


def test_cancel_without_id_takes_the_only_one(session):
    assert refused(session, Cancel()) == ("invalid_request", "id")
    session.receive(CHAT)
    assert session.receive(Cancel()) == CancelGeneration("g1")
    session.receive(CHAT)
    assert refused(session, Cancel()) == ("invalid_request", "id")


def test_ended_generations_are_remembered_up_to_a_bound(session):
    for number in range(1, REMEMBERED + 2):
        session.receive(CHAT)
        session.ended(f"g{number}")

    assert refused(session, Cancel("g1")) == ("not_found", "id")
    assert session.receive(Cancel("g2")) is None


def test_ping(session):
    assert session.receive(Ping()) == Reply(Pong())
