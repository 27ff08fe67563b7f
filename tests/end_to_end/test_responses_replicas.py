"""Responses behind one Redis: any replica retrieves, follows, continues, cancels and deletes them."""

from __future__ import annotations

import asyncio

import pytest
from support.responses import Events, follow, http, post, response_socket, streamed, text_of
from support.service import Service
from support.waiting import until

from ws_chat.testing import Reply, Wait, chunk, sse, text

pytestmark = pytest.mark.anyio

A = sse(chunk({"content": "a"}))


@pytest.fixture
async def replicas(shared, serve) -> tuple[Service, Service]:
    return await serve(redis_urls=shared.url), await serve(redis_urls=shared.url)


async def test_a_response_survives_its_socket_and_is_read_on_at_another_replica(replicas, fake):
    one, other = replicas
    go = asyncio.Event()
    fake.default = Reply([A, Wait(go), *text("b", "c")])
    seen = []
    async with response_socket(one) as client:
        await client.create(background=True, metadata={"a": "b"})
        while not seen or seen[-1]["type"] != "response.output_text.delta":
            seen.append(await client.receive())
        client.connection.transport.abort()
    path = f"/{seen[0]['response']['id']}"
    assert (await http(other, "GET", path)).json()["status"] == "in_progress"
    rest = asyncio.create_task(http(other, "GET", f"{path}?stream=true&starting_after={seen[-1]['sequence_number']}"))
    await until(lambda: other.relay._runner._reading, "the reader")
    go.set()

    events = streamed(await rest)
    assert text_of(events) == "bc"
    followed = Events()
    for event in [*seen, *events]:
        followed.feed(event)
    assert followed.response["metadata"] == {"a": "b"}
    # Every replica gives the same events: numbers, times, and what the request had.
    alone = streamed(await http(one, "GET", f"{path}?stream=true"))
    assert follow(alone).response == followed.response
    for replica in replicas:
        assert (await http(replica, "GET", path)).json() == followed.response
        for after in range(-1, alone[-1]["sequence_number"] + 1):
            query = f"?stream=true&starting_after={after}" if after >= 0 else "?stream=true"
            assert streamed(await http(replica, "GET", f"{path}{query}"))[-1:] == alone[-1:] * (
                after < alone[-1]["sequence_number"]
            )
    assert len(fake.requests) == 1


async def test_it_is_continued_cancelled_and_deleted_elsewhere(replicas, fake):
    one, other = replicas
    go = asyncio.Event()
    first = (await post(one)).json()
    second = (await post(other, previous_response_id=first["id"], input="more")).json()
    assert [message["content"] for message in fake.requests[1].body["messages"]] == ["hi", "Hello", "more"]
    assert second["previous_response_id"] == first["id"]

    fake.default = Reply([A, Wait(go)])
    async with response_socket(one) as client:
        for ending in ("cancel", "delete"):
            await client.create()
            response_id = (await client.receive())["response"]["id"]
            while (await client.receive())["type"] != "response.output_text.delta":
                pass
            if ending == "cancel":
                ended = (await http(other, "POST", f"/{response_id}/cancel")).json()
                assert ended["status"] == "cancelled"
            else:
                assert (await http(other, "DELETE", f"/{response_id}")).json()["deleted"] is True
            while (event := await client.receive())["type"] != "response.incomplete":
                pass
            assert event["response"]["status"] == "cancelled"
    for replica in replicas:
        assert (await http(replica, "GET", f"/{response_id}")).status_code == 404
