"""The list of models: the upstream's, as far as the settings allow them, asked for once."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from ws_chat.server.chat import models
from ws_chat.testing import FakeOpenAI, Hang, Reply
from ws_chat.upstreams import demo

pytestmark = pytest.mark.anyio


class Listing(FakeOpenAI):
    """Counts the requests for models, which `lists` replies to in order."""

    def __init__(self):
        super().__init__()
        self.asked = 0
        self.lists = []

    def record(self, request):
        if not request.path.endswith("/models"):
            return super().record(request)
        self.asked += 1
        return self.lists.pop(0) if self.lists else super().record(request)


@pytest.fixture
async def listing():
    async with Listing() as fake:
        yield fake


async def names(service, **headers):
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.get(f"{service.url}/v1/chat/models", headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["object"] == "list"
    return [model["id"] for model in response.json()["data"] if model["object"] == "model"]


async def test_it_is_the_upstreams_as_far_as_the_settings_allow(serve, listing):
    listing.models = ["gpt-4o", "whisper", "gpt-5", "gpt-4o"]
    service = await serve(openai_base_url=listing.base_url, model="gpt-5", models=("gpt-*", "o3"))
    found = await asyncio.gather(*(names(service) for _ in range(5)))

    assert found == [["gpt-5", "o3", "gpt-4o"]] * 5
    assert listing.asked == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b'{"error":{"message":"no such path"}}'], 404, {"Content-Type": "application/json"}),
        Reply([b"<html>"], 200, {"Content-Type": "text/html"}),
        Reply([b'{"data":[{"id":5}]}'], 200, {"Content-Type": "application/json"}),
        Reply([b'{"data":[{"id":"' + b"x" * 2**21], 200, {"Content-Type": "application/json"}),
        Reply([b'{"data":['], 200, {"Content-Type": "application/json"}, [Hang()]),
    ],
    ids=["none", "html", "shape", "size", "silence"],
)
async def test_an_upstream_without_a_list_leaves_those_that_are_named(reply, serve, listing, monkeypatch):
    monkeypatch.setattr(models, "TIMEOUT", 2.0)
    listing.lists = [reply]
    service = await serve(openai_base_url=listing.base_url, model="own", models=())

    assert await names(service) == ["own"]
    assert await names(service) == ["own"]
    assert listing.asked == 1, "it is not asked again at once"


async def test_it_needs_a_key_and_the_right_origin(serve):
    service = await serve(api_keys=("key",))
    async with httpx.AsyncClient(timeout=None) as client:
        url = f"{service.url}/v1/chat/models"
        without = await client.get(url)
        elsewhere = await client.get(url, headers={"Authorization": "Bearer key", "Origin": "https://evil.example"})

    assert (without.status_code, elsewhere.status_code) == (401, 403)
    assert await names(service, Authorization="Bearer key") == ["gpt-4o-mini", "gpt-4o"]


async def test_the_demo_lists_its_models(serve):
    assert await names(await serve(openai_api_key=None, openai_base_url=None)) == list(demo.MODELS)
