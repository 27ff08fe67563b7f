"""Fixtures that pytest loads wherever ws_chat is installed. Their imports are deferred until they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ws_chat.testing.fake_openai import FakeOpenAI


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """An OpenAI-compatible server in a thread of its own, which the test scripts."""
    from ws_chat.client.thread import LoopThread
    from ws_chat.testing.fake_openai import FakeOpenAI

    thread = LoopThread()
    fake = FakeOpenAI()
    thread.run(fake.start())
    yield fake
    thread.stop(fake.stop())


@pytest.fixture
def ws_chat_url(fake_openai: FakeOpenAI) -> Iterator[str]:
    """The URL of a ws_chat server in front of `fake_openai`, without the settings of the environment."""
    from ws_chat.server.app import create_app
    from ws_chat.server.settings import Settings
    from ws_chat.server.thread import serving

    settings = Settings.from_environment({"OPENAI_BASE_URL": fake_openai.base_url, "WS_CHAT_DRAIN_TIMEOUT": "0"})
    with serving(create_app(settings)) as url:
        yield url
