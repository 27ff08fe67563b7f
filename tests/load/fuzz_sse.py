"""The SSE door's part of the fuzz: requests, each with a response that the contract allows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from support.contract import ContractError, Followed, check, check_error, expected, read_frame
from support.hostile import MAX_BYTES, hostile
from support.service import event_id, events

from ws_chat.protocol.errors import CODES

if TYPE_CHECKING:
    import random
    from collections import Counter

    from support.service import Service

REQUESTS = 40
"""How many requests are sent, one after another."""


async def try_requests(service: Service, chance: random.Random, ids: list[str], answers: Counter[str]) -> None:
    """Try requests at the SSE door."""
    async with httpx.AsyncClient(timeout=None) as client:
        for _ in range(REQUESTS):
            method = chance.choice(["POST", "POST", "POST", "GET", "DELETE", "HEAD"])
            form = chance.choice(
                ["", "", "format=text", "format=frames", "format=frames", "format=frames", "format=", "format=%ff"]
            )
            data = hostile(chance, ids) if method == "POST" else b""
            headers: dict[str, Any] = {}
            if method == "POST":
                address = f"{service.stream_url}?{form}"
            else:
                odd = chance.choice([*ids, *ids, "é", "a/b", "\0", "a" * 3000, "..%2f", "\n", "{id}"])
                position = chance.choice(
                    ["0", "1", "2", "9", "", "-1", "1.0", "9" * 18, "9" * 19, "x", "%C2%B2", "+1", "1-x", "1-"]
                )
                address = f"{service.stream_url}/{quote(odd, safe='')}?{form}&after={position}"
                if chance.random() < 0.3:
                    headers["Last-Event-ID"] = chance.choice(
                        [b"0", b"1", b"2", b"", b"\xb2", b"1_0", b"9" * 5000, b"x", b"0-x", b"1-x_9", b"1-\xb2"]
                    )
            sent = f"{method} {address:.300} {headers} {data!r:.3000}"
            try:
                response = await client.request(method, address, content=data or None, headers=headers)
                answers[check_response(response, method, form, data)] += 1
            except (ContractError, httpx.HTTPError) as error:
                error.add_note(f"after {sent}")
                raise


def check_response(response: httpx.Response, method: str, form: str, data: bytes) -> str:
    """Check a response of the SSE door; return what it was."""
    status, kind = response.status_code, response.headers.get("content-type", "")
    if status == 204:
        check(method != "POST" and not response.content, "nothing is there to say", response)
        return "204"
    if status == 200:
        check(kind.startswith("text/event-stream"), "it is an event stream", kind)
        check("=" not in form or form in ("format=text", "format=frames"), "the format is known", form)
        check(method != "DELETE", "a cancel has no answer", response)
        if method == "POST":
            check(expected(data).kind == "chat", "this is a chat", response.content)
        if method != "HEAD":
            check_stream(response, frames=form == "format=frames", ids=method == "GET")
        return "200"
    check(kind == "application/json", "an error is JSON", response)
    if method == "HEAD":
        return str(status)
    body = response.json()
    check(list(body) == ["error"], "it is an error", body)
    error = body["error"]
    check_error(error, status)
    check(error["code"] in codes(method, form, data), "this may be the answer", error)
    return error["code"]


def codes(method: str, form: str, data: bytes) -> set[str | None]:
    """Return the codes that a request may be refused with."""
    upstreams = {code for code in CODES if code.startswith("upstream_")}
    if method == "DELETE":
        return {"not_found"}
    if method != "POST":
        return {"not_found", "invalid_request", "generation_gone", *upstreams}
    if form in ("format=", "format=%ff"):
        return {"invalid_request"}
    if len(data) > MAX_BYTES:
        return {"too_large"}
    what = expected(data)
    if what.kind == "chat":
        return what.answers | upstreams
    # Where a number is doubtful, that may be said of any frame.
    return {"invalid_request", *(what.answers & {"invalid_json"})} if what.kind else what.answers


def check_stream(response: httpx.Response, *, frames: bool, ids: bool) -> None:
    """Check an event stream from its first event to its last."""
    *before, last = events(response.content)
    if not frames:
        check(not any("event" in event for event in before), "what is said has no name", before)
        check(last.get("event") in ("done", "error"), "the end has one", last)
        check(not ids or all("id" in event for event in [*before, last]), "events can be resumed after", before)
        if last["event"] == "error":
            check_error(json.loads(last["data"])["error"])
        else:
            check(last["data"] in ("[DONE]", "[CANCELLED]"), "the end is said", last)
        return
    start, *others = [read_frame(event["data"]) for event in [*before, last]]
    for event, frame in zip([*before, last], [start, *others], strict=True):
        check((event["event"], event["id"]) == (frame["type"], event_id(start, frame)), "event and frame agree", event)
    followed = Followed(start)
    check(followed.id == response.headers["x-generation-id"], "the header tells the id", start)
    for frame in others:
        followed.take(frame)
    check(followed.ended, "it has an end", last)
