"""Named generations: they outlive their connection, are resumed, watched, sent again, continued and cancelled."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from server.test_access import MID_MINUTE
from support.service import HELLO, both_paths, events, joined
from support.waiting import until

from ws_chat.protocol.frames import DIGEST_SIZE
from ws_chat.stores.base import GenerationKey
from ws_chat.testing import DONE, Cut, Hang, Reply, Wait, chunk, sse, text, usage_chunk

pytestmark = [pytest.mark.anyio, both_paths]


def slowly(*contents: str) -> tuple[Reply, asyncio.Event]:
    """Return a reply that pauses after its first delta, and the event that lets it go on."""
    go = asyncio.Event()
    first, *rest = text(*contents)[1:]
    return Reply([first, Wait(go), *rest]), go


async def closed(fake, number: int = 1) -> None:
    await (await fake.request(number)).closed.wait()


async def follow(service, generation_id: str, query: str = "", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.get(f"{service.stream_url}/{generation_id}{query}", headers=headers)


async def delete(service, generation_id: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=None) as client:
        return await client.delete(f"{service.stream_url}/{generation_id}")


async def test_a_lost_connection_loses_nothing(service, fake):
    fake.default, go = slowly("a", "b", "c")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        assert (await socket.receive())["id"] == "r1"
        first = await socket.receive()
        socket.connection.transport.abort()
    async with service.socket() as socket:
        await socket.send({"type": "resume", "id": "r1", "after": first["seq"]})
        start = await socket.receive()
        go.set()
        *tokens, done = await socket.until_end()

    assert start == {"type": "start", "id": "r1", "seq": 1, "model": "gpt-4o-mini", "epoch": start["epoch"]}
    assert first["content"] + joined(tokens) == "abc"
    assert (done["status"], done["seq"], done["usage"]["completion_tokens"]) == ("completed", 4, 3)
    assert len(fake.requests) == 1
    assert "id" not in fake.requests[0].body


@pytest.mark.parametrize("after", range(4))
async def test_an_ended_one_is_read_after_any_seq(after, service, fake):
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await socket.send({"type": "resume", "id": "r1", "after": after})
        start, *tokens, done = await socket.until_end()

    assert (start["seq"], done["seq"], done["status"]) == (after, 3, "completed")
    assert joined(tokens) == "Hello"[3 * after :] if after < 2 else not tokens


async def test_a_position_beyond_the_end_is_refused(service, fake):
    fake.default, go = slowly("a", "b")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        refused = await socket.ask({"type": "resume", "id": "r1", "after": 2})
        assert (refused["id"], refused["error"]["code"], refused["error"]["param"]) == (
            "r1",
            "invalid_request",
            "after",
        )
        go.set()
        assert joined(await socket.until_end()) == "b", "nothing else changed"
        assert (await socket.ask({"type": "resume", "id": "r1", "after": 4}))["error"]["param"] == "after"


async def test_an_unnamed_generation_cannot_be_followed(service, fake):
    fake.default, go = slowly("a", "b")
    async with service.socket() as one, service.socket() as other:
        await one.send({"messages": HELLO})
        unnamed = (await one.receive())["id"]
        await one.receive()
        for socket in (one, other):
            for generation_id in (unnamed, "r9"):
                refused = await socket.ask({"type": "resume", "id": generation_id})
                assert (refused["id"], refused["error"]["code"]) == (generation_id, "not_found")
        for frame in ({"type": "cancel", "id": unnamed}, {"messages": HELLO, "previous_id": unnamed}):
            assert (await other.ask(frame))["error"]["code"] == "not_found"
        for generation_id in (unnamed, "r9", "%20", "r%2F9"):
            assert (await follow(service, generation_id)).status_code == 404
            assert (await delete(service, generation_id)).status_code == 404
        go.set()
        assert joined(await one.until_end()) == "b"


async def test_sent_again_it_attaches(service, fake):
    fake.default, go = slowly("a", "b")
    request = {"messages": HELLO, "id": "r1", "temperature": 0.5}
    async with service.socket() as one, service.socket() as other:
        await one.send(request)
        assert [(await one.receive())["type"], (await one.receive())["content"]] == ["start", "a"]
        await other.send({"type": "chat", "stream": True, **request})
        assert (await other.receive())["seq"] == 0
        assert (await other.receive())["content"] == "a"
        go.set()
        assert joined(await one.until_end()) == "b"
        assert joined(await other.until_end()) == "b"
        again = await other.chat(id="r1", temperature=0.5)

    assert joined(again) == "ab"
    assert len(fake.requests) == 1


async def test_sent_twice_at_the_same_instant_it_is_paid_for_once(service, fake):
    async with service.socket() as one, service.socket() as other:
        frames, more, events_of_third = await asyncio.gather(
            one.chat(id="r1"), other.chat(id="r1"), service.frames(id="r1")
        )

    assert joined(frames) == joined(more) == joined(events_of_third) == "Hello"
    assert len(fake.requests) == 1


async def test_another_body_under_the_same_id_is_a_conflict(service, fake):
    fake.default, go = slowly("a", "b")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        for other in ({"temperature": 1}, {"model": "m"}, {"messages": [*HELLO, *HELLO]}, {"previous_id": "r1"}):
            refused = await socket.ask({"messages": HELLO, "id": "r1", **other})
            assert (refused["id"], refused["error"]["code"], refused["error"]["status"]) == ("r1", "id_conflict", 409)
        response = await service.post({"messages": HELLO, "id": "r1", "temperature": 1})
        assert (response.status_code, response.json()["error"]["code"]) == (409, "id_conflict")
        go.set()
        assert joined(await socket.until_end()) == "b", "the one that ran runs on"
    assert len(fake.requests) == 1


async def test_a_second_reader_on_the_same_socket_replaces_the_first(service, fake):
    fake.default, go = slowly("a", "b", "c")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        await socket.send({"type": "resume", "id": "r1"})
        assert [(await socket.receive())["seq"], (await socket.receive())["content"]] == [0, "a"]
        go.set()
        frames = await socket.until_end()
        assert (joined(frames), sum(frame["type"] == "done" for frame in frames)) == ("bc", 1)
        assert (await socket.ask({"type": "ping"})) == {"type": "pong"}


async def test_many_readers_of_both_transports_read_the_same(service, fake):
    fake.default, go = slowly(*"abcdefgh")
    async with service.socket() as first, service.socket() as second:
        epoch = (await first.ask({"messages": HELLO, "id": "r1"}))["epoch"]
        await first.receive()
        await second.send({"type": "resume", "id": "r1"})
        over_sse = [asyncio.create_task(follow(service, "r1", f"?format=frames&after={after}")) for after in (0, 1)]
        texts = [
            asyncio.create_task(follow(service, "r1")),
            asyncio.create_task(service.post({"messages": HELLO, "id": "r1"})),
        ]
        await second.receive()
        go.set()
        assert joined(await first.until_end()) == "bcdefgh"
        assert joined(await second.until_end()) == "abcdefgh"
        for after, response in enumerate([await task for task in over_sse]):
            frames = [json.loads(event["data"]) for event in events(response.content)]
            assert joined(frames) == "abcdefgh"[after:]
            assert (frames[0]["seq"], frames[-1]["seq"]) == (after, 9)
        for response in [await task for task in texts]:
            *tokens, end = events(response.content)
            assert "".join(token["data"] for token in tokens) == "abcdefgh"
            assert (end["event"], end["data"], end["id"]) == ("done", "[DONE]", f"9-{epoch}")
    assert len(fake.requests) == 1


async def test_an_event_source_resumes_by_itself(service, fake):
    fake.default, go = slowly("a", "b", "c")
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", service.stream_url, json={"messages": HELLO, "id": "r1"}) as response,
    ):
        assert response.headers["x-generation-id"] == "r1"
        async for part in response.aiter_bytes():
            (event,) = events(part)
            break
    _, epoch = event["id"].split("-")
    assert part == f"id: 1-{epoch}\ndata: a\n\n".encode()
    go.set()
    rest = await follow(service, "r1", "?after=0", **{"Last-Event-ID": event["id"]})

    *tokens, end = events(rest.content)
    assert "".join(token["data"] for token in tokens) == "bc"
    assert tokens[-1]["id"] == f"3-{epoch}"
    assert end == {"id": f"4-{epoch}", "event": "done", "data": "[DONE]"}
    for position in (end["id"], "4"):
        over = await follow(service, "r1", **{"Last-Event-ID": position})
        assert (over.status_code, over.content) == (204, b"")
    for position in (tokens[-1]["id"], "3"):
        assert events((await follow(service, "r1", f"?after={position}")).content) == [end]


MALFORMED = ["5", "x", "-1", "1.5", "9" * 20, "\u0661", "1-", "1-a-b", "1-\u0661", "1 -a", "1-" + "a" * 33, "-a", "1_a"]


@pytest.mark.parametrize("position", MALFORMED)
async def test_a_position_that_is_none_is_400(position, service, fake):
    await service.frames(id="r1")

    for response in (
        await follow(service, "r1", f"?after={position}"),
        await follow(service, "r1", "?after=1", **{"Last-Event-ID": position.encode()}),
    ):
        assert (response.status_code, response.json()["error"]["param"]) == (400, "after")
    assert (await follow(service, "r1", "?format=odd")).json()["error"]["param"] == "format"


async def test_a_line_break_that_was_cut_in_two_is_one_also_when_resumed(service, fake):
    fake.reply(text("a\r", "\nb"))
    async with service.socket() as socket:
        await socket.chat(id="r1")
    whole = events((await follow(service, "r1")).content)
    rest = events((await follow(service, "r1", "?after=1")).content)
    assert "".join(event["data"] for event in whole[:-1]) == "a\nb"
    assert [event["data"] for event in rest] == ["b", "[DONE]"]


async def test_an_empty_position_is_none_in_the_query_and_not_given_in_the_header(service, fake):
    await service.frames(id="r1")
    assert (await follow(service, "r1", "?after=")).status_code == 400
    resumed = await follow(service, "r1", "?after=00001", **{"Last-Event-ID": ""})
    assert [event["data"] for event in events(resumed.content)] == ["lo", "[DONE]"]


async def test_a_head_request_starts_no_stream(service, fake):
    await service.frames(id="r1")
    async with httpx.AsyncClient(timeout=None) as client:
        response = await client.head(f"{service.stream_url}/r1")
        assert (response.status_code, response.content) == (200, b"")
        assert (await client.get(f"{service.url}/healthz")).status_code == 200, "the connection is in order"


async def test_a_head_is_that_of_the_get(service, fake):
    fake.reply(text("a"))
    fake.reply([sse({"error": {"message": "no"}})])
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await socket.chat(id="r2")
    for generation_id in ("r1", "r2"):
        async with httpx.AsyncClient(timeout=None) as client:
            head = await client.head(f"{service.stream_url}/{generation_id}")
        whole = await follow(service, generation_id)
        assert head.status_code == whole.status_code == (200 if generation_id == "r1" else 502)
        for name in ("content-type", "x-generation-id", "cache-control", "x-accel-buffering"):
            assert head.headers.get(name) == whole.headers.get(name)


async def test_a_cancel_of_what_is_forgotten_says_so(serve, fake):
    service = await serve(retention=0.05)
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await until(lambda: not service.relay._store._logs, "the answer to be forgotten")
        assert (await follow(service, "r1")).status_code == 404
        assert (await socket.ask({"type": "cancel", "id": "r1"}))["error"]["code"] == "not_found"


async def test_delete_cancels_from_anywhere(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        assert (await delete(service, "r1")).status_code == 204
        done = await socket.receive()
        assert (done["status"], done["seq"], done["finish_reason"]) == ("cancelled", 2, None)
        await closed(fake)
    assert (await delete(service, "r1")).status_code == 204
    token, end = (await follow(service, "r1")).content.split(b"\n\n", 1)
    assert (token.startswith(b"id: 1-"), token.endswith(b"\ndata: a")) == (True, True)
    assert end == b"id: 2-" + token[6:].split(b"\n")[0] + b"\nevent: done\ndata: [CANCELLED]\n\n"


async def test_cancel_from_another_socket(service, fake):
    fake.default = Reply([*text("a")[:2], Hang()])
    async with service.socket() as one, service.socket() as other:
        await one.send({"messages": HELLO, "id": "r1"})
        await one.receive()
        await one.receive()
        await other.send({"type": "cancel", "id": "r1"})
        assert (await one.receive())["status"] == "cancelled"
        assert (await other.ask({"type": "ping"})) == {"type": "pong"}
        await other.send({"type": "cancel", "id": "r1"})
        assert (await other.ask({"type": "ping"})) == {"type": "pong"}


async def test_a_failed_one_is_kept_too(service, fake):
    fake.reply([*text("a")[:2], Cut()])
    fake.refuse(400, "no such thing")
    async with service.socket() as socket:
        failed = (await socket.chat(id="r1"))[-1]
        await socket.send({"type": "resume", "id": "r1"})
        start, token, again = await socket.until_end()
        assert (start["seq"], token["content"], again) == (0, "a", failed)
        await socket.chat(id="r2")
    response = await follow(service, "r1")
    assert [event.get("event") for event in events(response.content)] == [None, "error"]
    assert (await follow(service, "r2")).status_code == 400
    assert (await follow(service, "r2", "?after=1")).status_code == 204


async def test_without_readers_it_is_cancelled_after_the_resume_window(serve, fake):
    service = await serve(resume_window=0.05)
    fake.default = Reply([*text("a")[:2], Hang()])
    for leave in (service.socket, None):
        if leave:
            async with leave() as socket:
                await socket.send({"messages": HELLO, "id": "r1"})
                await socket.receive()
                await socket.receive()
        else:
            async with (
                httpx.AsyncClient(timeout=None) as client,
                client.stream("POST", service.stream_url, json={"messages": HELLO, "id": "r2"}),
            ):
                pass
        await closed(fake, len(fake.requests))
    for generation_id in ("r1", "r2"):
        assert events((await follow(service, generation_id)).content)[-1]["data"] == "[CANCELLED]"
    assert service.relay.running == 0


async def test_a_reader_that_moved_counts_once(serve, fake):
    service = await serve(resume_window=0.01)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await fake.request()
        for _ in range(3):
            await socket.send({"type": "resume", "id": "r1"})
        assert (await socket.ask({"type": "ping"}))["id"] == "r1"
        types = ["start"]
        while types[-1] != "pong":
            types.append((await socket.receive())["type"])
        assert types.count("start") == 4
    await closed(fake)


async def test_a_reader_keeps_it_alive(serve, fake):
    service = await serve(resume_window=0.01)
    fake.default, go = slowly("a", "b")
    async with service.socket() as one:
        async with service.socket() as other:
            for generation_id in ("r1", "r2"):
                await other.send({"messages": HELLO, "id": generation_id})
                await other.receive()
                await other.receive()
            await one.send({"type": "resume", "id": "r1"})
            await one.receive()
        await closed(fake, 2)  # the other one has no reader any more, and its window has passed
        go.set()
        assert joined(await one.until_end()) == "ab"


async def test_an_ended_one_is_forgotten_after_the_retention(serve, fake):
    service = await serve(retention=0.05)
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await until(lambda: not service.relay._store._logs, "the answer to be forgotten")
        assert (await socket.ask({"type": "resume", "id": "r1"}))["error"]["code"] == "not_found"
        assert joined(await socket.chat(id="r1")) == "Hello"
    assert len(fake.requests) == 2


async def test_a_replay_of_a_long_answer_is_a_few_frames(service, fake):
    pieces = [f"{number} " for number in range(2000)]
    fake.default = Reply([b"".join(text(*pieces))])
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await socket.send({"type": "resume", "id": "r1"})
        frames = await socket.until_end()

    assert joined(frames) == "".join(pieces)
    assert len(frames) <= 20


async def test_continuing_sends_the_new_message_only(service, fake):
    more = [{"role": "user", "content": "more"}]
    async with service.socket() as socket:
        await socket.chat(id="r1", model="m-1", temperature=0.5)
        await socket.chat(id="r2", previous_id="r1", messages=more)
        await socket.chat(previous_id="r2", messages=more, model="m-2")
    async with service.socket() as socket:
        await socket.chat(previous_id="r1", messages=more)
    await service.frames(previous_id="r1", messages=more)

    hello = {"role": "assistant", "content": "Hello"}
    second, third, fourth, fifth = (request.body for request in fake.requests[1:])
    assert second["messages"] == fourth["messages"] == fifth["messages"] == [*HELLO, hello, *more]
    assert third["messages"] == [*HELLO, hello, *more, hello, *more]
    assert [body["model"] for body in (second, third, fourth)] == ["m-1", "m-2", "m-1"]
    assert "temperature" not in second
    assert "previous_id" not in second


async def test_continuing_an_unnamed_one_on_its_own_socket(service, fake):
    async with service.socket() as socket:
        first = (await socket.chat())[0]["id"]
        second = (await socket.chat(previous_id=first, messages=HELLO))[0]["id"]
        await socket.chat(previous_id=second, messages=HELLO)
        assert len(fake.requests[2].body["messages"]) == 5
        refused = await socket.ask({"messages": HELLO, "previous_id": "r9", "id": "r1"})
    assert (refused["id"], refused["error"]["code"], refused["error"]["param"]) == ("r1", "not_found", "previous_id")
    async with service.socket() as socket:
        assert (await socket.ask({"messages": HELLO, "previous_id": first}))["error"]["code"] == "not_found"
    assert (await service.post({"messages": HELLO, "previous_id": first})).status_code == 404


async def test_continuing_one_that_runs_interrupts_it(service, fake):
    fake.reply([*text("partial")[:2], Hang()])
    async with service.socket() as socket:
        await socket.send({"messages": HELLO, "id": "r1"})
        await socket.receive()
        await socket.receive()
        await socket.send({"messages": [{"role": "user", "content": "stop"}], "id": "r2", "previous_id": "r1"})
        interrupted = await socket.receive()
        assert (interrupted["id"], interrupted["status"]) == ("r1", "cancelled")
        await closed(fake)
        assert joined(await socket.until_end("r2")) == "Hello"

    assert fake.requests[1].body["messages"] == [
        *HELLO,
        {"role": "assistant", "content": "partial"},
        {"role": "user", "content": "stop"},
    ]


async def test_one_that_said_nothing_adds_nothing(service, fake):
    fake.reply([Hang()])
    async with service.socket() as socket:
        await socket.send({"id": "r1", "messages": HELLO})
        await fake.request(1)
        await socket.send({"previous_id": "r1", "messages": HELLO})
        await socket.until_end("r1")
        await socket.until_end()

    assert fake.requests[1].body["messages"] == [*HELLO, *HELLO]


async def test_of_one_that_failed_before_its_first_delta_only_the_error_is_kept(service, fake):
    fake.refuse(400, "no")
    large = [{"role": "user", "content": "x" * 1_000_000}]
    async with service.socket() as socket:
        _, failed = await socket.chat(id="r1", messages=large)
        refused = await socket.ask({"id": "r2", "previous_id": "r1", "messages": HELLO})
        again = await socket.chat(id="r1", messages=large)
        other = await socket.ask({"id": "r1", "messages": HELLO})

    assert (refused["error"]["code"], refused["error"]["param"]) == ("not_found", "previous_id")
    assert again[-1] == failed
    assert other["error"]["code"] == "id_conflict"
    assert len(fake.requests) == 1
    log = await service.relay._store.get(GenerationKey("anonymous", "r1", named=True))
    assert len(log.request) == DIGEST_SIZE


async def test_a_tool_round_trip_needs_only_the_results(service, fake):
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    calls = [{"tool_calls": [head]}, *({"tool_calls": [{"index": 0, "function": {"arguments": a}}]} for a in '{"a":1}')]
    fake.reply([*(sse(chunk(call)) for call in calls), sse(chunk({}, "tool_calls"), usage_chunk()), DONE])
    result = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
    async with service.socket() as socket:
        await socket.chat(id="r1")
        await socket.chat(id="r2", previous_id="r1", messages=[result])

    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert fake.requests[1].body["messages"] == [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        result,
    ]


async def test_an_id_of_an_unnamed_one_names_no_other(service, fake):
    fake.default, go = slowly("a", "b")
    async with service.socket() as socket:
        await socket.send({"messages": HELLO})
        unnamed = (await socket.receive())["id"]
        await socket.receive()
        assert (await socket.ask({"messages": HELLO, "id": unnamed}))["error"]["code"] == "id_conflict"
        go.set()
        assert joined(await socket.until_end()) == "b"


async def test_an_id_that_an_unnamed_generation_had_can_be_a_name(service, fake):
    """A cancel means the one that runs."""
    async with service.socket() as socket:
        (start, *_) = await socket.chat()
        fake.default = Reply([sse(chunk({"content": "a"})), Hang()])
        await socket.send({"messages": HELLO, "id": start["id"]})
        assert (await socket.receive())["type"] == "start"
        assert (await socket.receive())["content"] == "a"
        await socket.send({"type": "cancel", "id": start["id"]})
        done = await socket.receive()

    assert (done["type"], done["status"]) == ("done", "cancelled")


@pytest.mark.parametrize("limit", ["requests_per_minute", "max_generations", "max_generations_per_principal"])
async def test_what_is_there_already_meets_no_limit(limit, serve, fake, monkeypatch):
    monkeypatch.setattr("time.time", lambda: MID_MINUTE)
    service = await serve(**{limit: 1})
    go = asyncio.Event()
    first, *rest = text("a", "b")[1:]
    fake.default = Reply([first, Wait(go), *rest])
    async with service.socket() as socket, service.socket() as other:
        await socket.send({"messages": HELLO, "id": "r1"})
        assert [(await socket.receive())["type"], (await socket.receive())["content"]] == ["start", "a"]
        await other.send({"messages": HELLO, "id": "r1"})
        assert [(await other.receive())["type"], (await other.receive())["content"]] == ["start", "a"]
        refused = await other.ask({"messages": HELLO, "id": "r2"})
        assert refused["error"]["status"] in (429, 503)
        go.set()
        assert joined(await other.until_end()) == "b"
    assert len(fake.requests) == 1
