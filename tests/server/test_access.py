"""Keys, origins and quotas, at both doors."""

from __future__ import annotations

import base64
import json
import re

import httpx
import pytest
from support.service import HELLO, both_paths, joined
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ws_chat import ChatError
from ws_chat.relay import access
from ws_chat.relay.access import (
    ANONYMOUS,
    COUNTED_SIZE,
    Caller,
    Hosts,
    Keys,
    Origins,
    Quota,
    Throttle,
    ThrottledError,
    bearer,
    name_of,
    network,
)
from ws_chat.server.connections import Connections
from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

ALICE, BOB = {"Authorization": "Bearer key-of-alice"}, {"Authorization": "bearer key-of-bob"}
BOTH = ("key-of-alice", "key-of-bob")


MID_MINUTE = 1_800_000_030.0
"""A time of the day. Quotas are counted by the minutes of the clock, and a test may fall into two of them."""


def code(call, *arguments) -> str:
    with pytest.raises(ChatError) as refused:
        call(*arguments)
    return refused.value.info.code


def test_a_key_stands_for_a_principal_that_does_not_reveal_it():
    keys = Keys(BOTH)
    alice, bob = keys.principal("key-of-alice"), keys.principal("key-of-bob")
    assert alice == name_of("key-of-alice") != bob
    assert "alice" not in alice
    for wrong in (None, "", "key-of-alic", "key-of-alicee", "KEY-OF-ALICE", "\udcff", "key-of-alice,key-of-bob"):
        assert code(keys.principal, wrong) == "unauthorized"
    assert Keys([]).principal(None) == Keys([]).principal("anything") == ANONYMOUS


@pytest.mark.parametrize(
    ("authorization", "subprotocols", "key"),
    [
        ("Bearer k", (), "k"),
        ("bearer  k ", (), "k"),
        ("Basic k", (), None),
        ("Bearer", (), None),
        (None, (), None),
        (None, ("ws_chat.v1", "bearer.a2V5LW9mLWFsaWNl"), "key-of-alice"),
        (None, ("bearer.Pz8_",), "???"),
        (None, ("bearer.Pz8_Pw==",), "????"),
        (None, ("bearer.", "ws_chat.v1"), ""),
        (None, ("bearer.!",), ""),
        (None, ("bearer.gA",), ""),
        ("Bearer k", ("bearer.a2V5",), "k"),
    ],
)
def test_a_key_comes_in_a_header_or_a_subprotocol(authorization, subprotocols, key):
    assert bearer(authorization, subprotocols) == key


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "h", True),
        ("http://h", "h", True),
        ("http://h", "h:80", True),
        ("https://h", "h:443", True),
        ("https://h", "h:80", False),
        ("http://h", "h:443", False),
        ("ftp://h", "h", False),
        ("https://H:8443", "h:8443", True),
        ("http://h:8000", "h", False),
        ("http://h.evil.example", "h", False),
        ("null", "h", False),
        ("http://h", None, False),
        ("", "", False),
        ("https://chat.example.com", "h", True),
        ("https://Chat.example.com", "h", True),
        ("http://chat.example.com", "h", False),
        ("http://[", "h", False),
    ],
)
def test_origins(origin, host, allowed):
    origins = Origins(["https://chat.example.com"])
    if allowed:
        origins.check(origin, host, "http")
    else:
        assert code(origins.check, origin, host, "http") == "origin_not_allowed"
    Origins(["*"]).check(origin, host, "http")


@pytest.mark.parametrize(
    ("origin", "scheme", "allowed"),
    [
        ("https://h", "https", True),
        ("https://h", "wss", True),
        ("https://h", "ws", True),  # a proxy that ends TLS may not say so
        ("http://h", "ws", True),
        ("http://h", "https", False),
        ("http://h", "wss", False),
    ],
)
def test_a_page_without_tls_is_not_of_a_server_with_it(origin, scheme, allowed):
    if allowed:
        Origins([]).check(origin, "h", scheme)
    else:
        assert code(Origins([]).check, origin, "h", scheme) == "origin_not_allowed"
        Origins([origin]).check(origin, "h", scheme)


LOCAL = [
    "localhost",
    "localhost:8000",
    "LOCALHOST",
    "localhost.",
    "a.localhost:1",
    "127.0.0.1:80",
    "10.0.0.7",
    "[::1]:8000",
]
ELSEWHERE = [
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[evil.example]",
    "",
    None,
    ":80",
    "@",
]


@pytest.mark.parametrize("host", LOCAL)
@pytest.mark.parametrize("patterns", [(), ("chat.example.com",)])
def test_hosts_that_no_name_can_be_rebound_to_are_allowed(host, patterns):
    for any_by_default in (True, False):
        Hosts(patterns, any_by_default=any_by_default).check(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_hosts_are_allowed_by_default_or_by_a_pattern(host):
    assert code(Hosts((), any_by_default=False).check, host) == "host_not_allowed"
    assert code(Hosts(("chat.example.com",), any_by_default=True).check, host) == "host_not_allowed"
    Hosts((), any_by_default=True).check(host)


def test_patterns_of_hosts():
    hosts = Hosts(("chat.example.com", "*.internal", "box:8000"), any_by_default=False)
    for host in ("chat.example.com", "Chat.Example.com:8443", "chat.example.com.", "a.b.internal:1", "box:8000"):
        hosts.check(host)
    for host in ("example.com", "chat.example.com.evil.example", "internal", "box", "box:80"):
        assert code(hosts.check, host) == "host_not_allowed"


async def test_a_quota_is_counted_for_each_principal(monkeypatch):
    monkeypatch.setattr("time.time", lambda: MID_MINUTE)
    quota = Quota(2)
    for _ in range(2):
        async with quota.counted("a"):
            pass
    with pytest.raises(ChatError) as refused:
        async with quota.counted("a"):
            pass
    assert refused.value.info.code == "rate_limited"
    assert 1 <= refused.value.info.retry_after <= 60
    async with quota.counted("b"):
        pass


def subprotocols(key: str) -> list[str]:
    return ["ws_chat.v1", "bearer." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")]


async def denied(service, **connecting) -> httpx.Response:
    with pytest.raises(InvalidStatus) as refused:
        async with service.socket(**connecting):
            pass
    response = refused.value.response
    return httpx.Response(response.status_code, headers=dict(response.headers), content=bytes(response.body))


@both_paths
@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a2V5"}])
async def test_without_a_key_every_request_is_refused(given, serve, fake):
    service = await serve(api_keys=BOTH)
    async with httpx.AsyncClient(headers=given, timeout=None) as client:
        responses = [
            await client.post(service.stream_url, json={"messages": HELLO}),
            await client.get(service.stream_url + "/r1"),
            await client.delete(service.stream_url + "/r1"),
            await denied(service, additional_headers=given),
        ]
        for response in responses:
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"] == {
                "type": "authentication_error",
                "code": "unauthorized",
                "message": response.json()["error"]["message"],
                "param": None,
                "status": 401,
                "retryable": False,
                "retry_after": None,
            }
        assert (await client.get(service.url + "/healthz")).status_code == 200
    assert fake.requests == []


@both_paths
async def test_with_a_key_both_transports_accept_requests(serve):
    service = await serve(api_keys=BOTH)
    assert (await service.post(**ALICE)).status_code == 200
    async with service.socket(additional_headers=BOB) as socket:
        assert joined(await socket.chat()) == "Hello"
        assert socket.connection.subprotocol is None
    async with service.socket(subprotocols=subprotocols("key-of-bob")) as socket:
        assert socket.connection.subprotocol == "ws_chat.v1"
        assert joined(await socket.chat()) == "Hello"


async def test_a_wrong_key_as_a_subprotocol_is_refused(serve):
    service = await serve(api_keys=BOTH)
    assert (await denied(service, subprotocols=subprotocols("wrong"))).status_code == 401


async def test_a_subprotocol_is_chosen_without_keys_too(service):
    async with service.socket(subprotocols=["other", "ws_chat.v1"]) as socket:
        assert socket.connection.subprotocol == "ws_chat.v1"
    async with connect(service.ws_url, subprotocols=["other"], open_timeout=None) as connection:
        assert connection.subprotocol is None


async def test_what_belongs_to_another_principal_is_not_there(serve, fake):
    service = await serve(api_keys=BOTH)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with (
        service.socket(additional_headers=ALICE) as alice,
        service.socket(additional_headers=BOB) as bob,
        httpx.AsyncClient(headers=BOB, timeout=None) as client,
    ):
        await alice.send({"messages": HELLO, "id": "r1"})
        assert [(await alice.receive())["type"] for _ in range(2)] == ["start", "token"]
        known = await bob.ask({"type": "resume", "id": "r1"})
        unknown = await bob.ask({"type": "resume", "id": "r2"})
        assert known["error"] == unknown["error"]
        for frame in ({"type": "cancel", "id": "r1"}, {"messages": HELLO, "previous_id": "r1"}):
            assert (await bob.ask(frame))["error"]["code"] == "not_found"
        assert (await client.get(service.stream_url + "/r1")).status_code == 404
        assert (await client.delete(service.stream_url + "/r1")).status_code == 404
        fake.default = Reply(text("of bob"))
        assert joined(await bob.chat(id="r1")) == "of bob", "ids of one mean nothing to the other"
        await alice.send({"type": "cancel", "id": "r1"})
        assert (await alice.until_end())[-1]["status"] == "cancelled"


@both_paths
async def test_a_page_of_another_host_is_refused(serve, fake):
    service = await serve(allowed_origins=("https://chat.example.com",))
    own = service.url
    for origin, status in ((own, 200), ("https://chat.example.com", 200), ("https://evil.example", 403), ("null", 403)):
        response = await service.post(Origin=origin)
        assert response.status_code == status
        allowed = response.headers.get("access-control-allow-origin")
        assert allowed == ("https://chat.example.com" if origin == "https://chat.example.com" else None)
        if status == 200:
            async with service.socket(origin=origin) as socket:
                assert (await socket.ask({"type": "ping"}))["type"] == "pong"
        else:
            assert response.json()["error"]["code"] == "origin_not_allowed"
            assert (await denied(service, origin=origin)).json()["error"]["code"] == "origin_not_allowed"
    assert len(fake.requests) == 2


REBOUND = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
"""What a browser sends for a page whose name was made to resolve to this server's address."""


async def rebound(service, **headers: str) -> httpx.Response:
    """Return the answer to a WebSocket handshake of such a page."""
    given = {
        **REBOUND,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("GET", service.url + "/v1/chat/ws", headers=given) as response,
    ):
        if response.status_code != 101:
            await response.aread()
    return response


@both_paths
async def test_a_page_of_a_rebound_name_is_refused(serve, fake):
    service = await serve()
    async with httpx.AsyncClient(timeout=None) as client:
        responses = [
            await service.post(**REBOUND),
            await client.get(service.stream_url + "/r1", headers=REBOUND),
            await client.delete(service.stream_url + "/r1", headers=REBOUND),
            await rebound(service),
            await client.get(service.url, headers=REBOUND),
            await client.get(service.url, headers={"Host": "evil.example", "Accept": "text/html,*/*"}),
        ]
        without_origin = {"Host": "evil.example:8000"}
        assert (await service.post(**without_origin)).status_code == 200
        assert (await client.get(service.url, headers=without_origin)).status_code == 200
    for response in responses:
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (403, "host_not_allowed", "permission_error")
        assert "'evil.example'" in error["message"]
        assert "WS_CHAT_ALLOWED_HOSTS" in error["message"]
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"allowed_hosts": ("evil.*",)}, 200),
        ({"api_keys": BOTH}, 200),
        ({"api_keys": BOTH, "allowed_hosts": ("chat.example.com",)}, 403),
        ({"allowed_origins": ("*",)}, 403),
    ],
)
async def test_which_hosts_are_allowed_is_a_setting(settings, status, serve):
    service = await serve(**settings)
    assert (await service.post(**REBOUND, **ALICE)).status_code == status
    assert (await rebound(service, **ALICE)).status_code == (101 if status == 200 else 403)


async def test_a_proxy_says_whether_there_is_tls(serve):
    service = await serve()
    own, https = service.url, service.url.replace("http", "https")
    async with httpx.AsyncClient(timeout=None) as client:  # one connection: each request has its own headers
        for proto, origin, status in (
            ("https", https, 200),
            ("http", own, 200),
            ("http", https, 200),
            ("https", own, 403),
            (None, own, 200),
            ("https", own, 403),
        ):
            headers = {"Origin": origin} | ({"X-Forwarded-Proto": proto} if proto else {})
            response = await client.post(service.stream_url, json={"messages": HELLO}, headers=headers)
            assert response.status_code == status, (proto, origin)


@pytest.mark.parametrize(
    ("settings", "server", "warned"),
    [
        ({}, {"host": "0.0.0.0"}, True),
        ({}, {"host": "::"}, True),
        ({}, {"host": "localhost"}, False),
        ({}, {"host": "::1"}, False),
        ({"api_keys": BOTH}, {"host": "0.0.0.0"}, False),
        ({"upstream": "demo"}, {"host": "0.0.0.0"}, False),
        ({}, {"host": "0.0.0.0", "uds": "/tmp/socket"}, False),
    ],
)
async def test_an_upstream_that_is_open_to_a_network_is_warned_of(settings, server, warned, serve, caplog):
    await serve(**settings, server=server)  # it listens on 127.0.0.1 in any case
    assert any("NO API KEYS" in message for message in caplog.messages) is warned


async def test_a_browser_may_ask_first(serve):
    service = await serve(allowed_origins=("https://chat.example.com",), api_keys=BOTH)
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with httpx.AsyncClient(timeout=None) as client:
        for origin, status in (("https://chat.example.com", 200), ("https://evil.example", 400)):
            response = await client.options(service.stream_url, headers={"Origin": origin, **asking})
            assert response.status_code == status
        refused = await client.post(service.stream_url, headers={"Origin": "https://chat.example.com"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://chat.example.com"


@both_paths
async def test_requests_per_minute(serve, fake, monkeypatch):
    monkeypatch.setattr("time.time", lambda: MID_MINUTE)
    service = await serve(requests_per_minute=2, api_keys=BOTH)
    async with service.socket(additional_headers=ALICE) as socket:
        await socket.chat(id="r1")
        await socket.chat(id="r2")
        await socket.chat(id="r1")  # attaches, and costs nothing
        refused = (await socket.chat(id="r3"))[-1]
        assert (refused["id"], refused["error"]["code"], refused["error"]["status"]) == ("r3", "rate_limited", 429)
    response = await service.post(**ALICE)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert (await service.post(**BOB)).status_code == 200
    assert len(fake.requests) == 3


RESUME = {"type": "resume", "id": "none"}


def reached(scraped: str, limit: str) -> float:
    """Return how often a limit was reached, from the metrics."""
    return float(re.search(rf'^ws_chat_limits_reached_total{{limit="{limit}"}} (\S+)$', scraped, re.MULTILINE)[1])


@both_paths
async def test_requests_that_start_nothing_are_limited(serve, fake, monkeypatch):
    monkeypatch.setattr("time.time", lambda: MID_MINUTE)
    monkeypatch.setattr(access, "BLOCK_TIME", 600.0)
    service = await serve(free_requests_per_minute=6, api_keys=BOTH)
    limited = ("rate_limited", 600.0, True)
    async with service.socket(additional_headers=ALICE) as alice, service.socket(additional_headers=BOB) as bob:

        async def refused(frame, socket=alice):
            answer = await socket.ask(frame)
            return answer.get("id"), *(answer["error"][key] for key in ("code", "retry_after", "retryable"))

        await alice.chat(id="r1")
        await alice.chat(id="r1")  # one
        assert (await refused(RESUME))[1] == "not_found"
        assert (await refused({"id": "r1", "messages": [HELLO[0]] * 2}))[
            1
        ] == "id_conflict"  # both repeated and refused
        assert (await refused("{"))[1] == "invalid_json"
        assert (await service.post(b"{", **ALICE)).status_code == 400
        assert await refused(RESUME) == ("none", *limited)
        assert await refused("{") == (None, *limited)
        assert await refused({"id": "r1", "messages": HELLO}) == ("r1", *limited)
        large = json.dumps({"id": "r9", "messages": [{"role": 1, "content": "x" * 70_000}]})
        assert await refused(large) == (None, *limited), "it is not even read"
        for response in (await service.post(b"{", **ALICE), await service.post(large.encode(), **ALICE)):
            assert (response.status_code, response.headers["retry-after"]) == (429, "600")

        assert (await alice.ask({"type": "ping"}))["type"] == "pong"
        assert joined(await alice.chat(id="r2")) == "Hello", "what starts a generation has another limit"
        assert (await refused(RESUME, bob))[1] == "not_found"
    async with httpx.AsyncClient(timeout=None) as client:
        scraped = (await client.get(service.url + "/metrics")).text
    assert reached(scraped, "free_requests_per_minute") == 6
    assert len(fake.requests) == 2


async def test_after_the_block_time_free_requests_are_counted_again(monkeypatch):
    now = MID_MINUTE
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr(access, "BLOCK_TIME", 0.0)
    throttle = Throttle(10)
    one, other = Caller("a", "x", "sse"), Caller("b", "x", "sse")
    await throttle.count(one, 9 * COUNTED_SIZE)
    with pytest.raises(ThrottledError):
        await throttle.count(one)
    with pytest.raises(ThrottledError):
        throttle.check(one)
    await throttle.count(other, 1000 * COUNTED_SIZE)
    await until(lambda: not throttle._blocked, "it to be counted again")
    now += 120
    await throttle.count(one)


def test_without_keys_clients_are_distinguished_by_their_address():
    addresses = [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1:1",
        "2001:db8::2:1",
        "2001:db8:0:1::1",
        "::ffff:192.0.2.1",
        None,
    ]
    callers = [Caller(ANONYMOUS, "x", "sse", network(address)) for address in addresses]
    assert [caller.neighbour.removeprefix(f"{ANONYMOUS}/") for caller in callers] == [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::/64",
        "2001:db8::/64",
        "2001:db8:0:1::/64",
        "192.0.2.1",
        "",
    ]
    assert Caller("key-1", "x", "sse", "192.0.2.1").neighbour == "key-1"


async def test_generations_of_a_principal_at_once(serve, fake):
    service = await serve(max_generations_per_principal=1, api_keys=BOTH)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with service.socket(additional_headers=ALICE) as one, service.socket(additional_headers=ALICE) as other:
        await one.send({"messages": HELLO, "id": "r1"})
        await one.receive()
        assert (await other.ask({"messages": HELLO}))["error"]["code"] == "too_many_generations"
        async with service.socket(additional_headers=BOB) as bob:
            assert (await bob.ask({"messages": HELLO}))["type"] == "start"
        await other.send({"messages": HELLO, "id": "r2", "previous_id": "r1"})
        assert (await other.receive())["type"] == "start", "who interrupts needs no room of its own"
        await other.send({"type": "cancel", "id": "r2"})
        await other.until_end("r2")
        assert (await one.ask({"messages": HELLO, "id": "r3"}))["type"] in ("token", "start", "done")
    await until(lambda: service.relay.running <= 1, "all to end but r3")


async def test_no_answer_holds_a_key(serve, caplog):
    service = await serve(api_keys=BOTH)
    responses = [await service.post(Authorization="Bearer my-secret"), await service.post(b"{", **ALICE)]
    assert not [response for response in responses if "my-secret" in response.text or "alice" in response.text]
    assert "my-secret" not in caplog.text
    assert "key-of" not in caplog.text
    assert json.dumps("key-of") not in str(service.app.state.__dict__)


@pytest.mark.parametrize("name", [None, "", 7, {"name": "alice"}])
async def test_a_principal_must_be_a_name(name):
    async def principal(_):
        return name

    connections = Connections(1, principal, Origins([]))
    with pytest.raises(TypeError, match="must return a non-empty str"):
        await connections.caller({"type": "http", "headers": []}, "sse")


async def test_over_a_websocket_too_it_is_known_when_to_try_again(serve, fake):
    service = await serve(requests_per_minute=2)
    fake.default = Reply(status=429, headers={"Retry-After": "7", "x-should-retry": "false"})
    async with service.socket() as socket:
        failed = (await socket.chat())[-1]
        await socket.chat()
        refused = (await socket.chat())[-1]

    assert (failed["error"]["code"], failed["error"]["retry_after"]) == ("upstream_rate_limited", 7)
    assert refused["error"]["code"] == "rate_limited"
    assert 1 <= refused["error"]["retry_after"] <= 60
