"""Behind nginx, Caddy, HAProxy and Envoy, with the examples as they stand: only addresses and paths are put in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.peers import UPGRADE, accepts
from support.processes import ROOT, Running, free_port, listens, need, program
from support.service import HELLO, both_paths, events, joined
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ws_chat.testing import Hang, Reply, Wait, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT = {"messages": HELLO}
KEY = {"Authorization": "Bearer key-of-alice"}
NGINX = {
    "pid /run/nginx.pid;": "pid {folder}/pid;",
    "error_log /var/log/nginx/error.log;": "error_log stderr notice;",
    "access_log /var/log/nginx/access.log;": "access_log {folder}/access.log; {temporary}",
    "/etc/ssl/chat.example.com.": "{folder}/",
    "listen 443 ": "listen 127.0.0.1:{port} ",
    "server 127.0.0.1:8000;": "server {upstream};",
}
PLAIN_NGINX = {**NGINX, "listen 443 ssl http2": "listen 127.0.0.1:{port}"}
del PLAIN_NGINX["listen 443 "]
CADDY = {
    "chat.example.com {": "{{\n\tadmin off\n\tstorage file_system {folder}\n\tauto_https off\n}}\n"
    "https://127.0.0.1:{port} {{\n\ttls {folder}/pem {folder}/key",
    "reverse_proxy 127.0.0.1:8000": "reverse_proxy {upstream}",
}
PLAIN_CADDY = {
    **CADDY,
    "chat.example.com {": "{{\n\tadmin off\n\tstorage file_system {folder}\n}}\nhttp://127.0.0.1:{port} {{",
}
HAPROXY = {
    "bind :443 ssl crt /etc/ssl/chat.example.com.pem alpn h2,http/1.1": "bind 127.0.0.1:{port} ssl crt {folder}/both "
    "alpn h2,http/1.1",
    "127.0.0.1:8000": "{upstream}",
}
PLAIN_HAPROXY = {
    "bind :443 ssl crt /etc/ssl/chat.example.com.pem alpn h2,http/1.1": "bind 127.0.0.1:{port}",
    "127.0.0.1:8000": "{upstream}",
}
ENVOY = {
    "address: 0.0.0.0, port_value: 443": "address: 127.0.0.1, port_value: {port}",
    "/etc/ssl/chat.example.com.pem": "{folder}/pem",
    "/etc/ssl/chat.example.com.key": "{folder}/key",
    "socket_address: { address: 127.0.0.1, port_value: 8000 }": "{upstream}",
}
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Site:
    """What stands behind a proxy, as it is seen from outside."""

    host: str
    tls: ssl.SSLContext | None
    proxy: str

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def stream_url(self) -> str:
        return f"{self.origin}/v1/chat/stream"

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self.tls or False, timeout=None, headers=headers)

    def socket(self, **connecting: Any) -> connect:
        url = self.origin.replace("http", "ws") + "/v1/chat/ws"
        return connect(url, ssl=self.tls, max_size=None, open_timeout=None, **connecting)

    async def denied(self, **connecting: Any) -> int:
        """Return the status with which a socket is refused."""
        with pytest.raises(InvalidStatus) as refused:
            await self.socket(**connecting)
        return refused.value.response.status_code

    async def status(self, path: str) -> int:
        """Return the status of a path that no client has tidied up."""
        raw = await self.raw(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n".encode())
        return statuses(raw)[0]

    async def raw(self, *parts: bytes) -> bytes:
        """Write each of the parts at once, and return what comes back until the connection is closed."""
        reader, writer = await asyncio.open_connection(*self.host.split(":"), ssl=self.tls)
        for part in parts:
            writer.write(part)
            await writer.drain()
        raw = await reader.read()
        writer.close()
        return raw


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a key and its certificate."""
    folder = tmp_path_factory.mktemp("proxy")
    command = f"req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {folder}/key -out {folder}/pem"
    subject = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([need("openssl"), *command.split(), *subject], check=True, capture_output=True)
    return folder


def filled(example: str, places: dict[str, str], **values: Any) -> str:
    """Return an example with what a test puts in."""
    content = (ROOT / "examples" / example).read_text()
    for place, value in places.items():
        assert content.count(place), place
        content = content.replace(place, value.format(**values))
    return content


def started(
    kind: str, folder: Path, port: int, upstream: str, *, plain: bool = False
) -> contextlib.AbstractAsyncContextManager[Running]:
    """Start a proxy."""
    if kind == "nginx":
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{each}_temp_path {folder}/{each};" for each in kinds)
        values = {"folder": folder, "port": port, "upstream": upstream, "temporary": temporary}
        (folder / "nginx.conf").write_text(filled("nginx.conf", PLAIN_NGINX if plain else NGINX, **values))
        user = "user root;" if os.geteuid() == 0 else ""  # whose folder it is
        return program(need("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", f"daemon off; {user}")
    values = {"folder": folder, "port": port, "upstream": upstream.replace("unix:/", "unix//")}
    if kind == "haproxy":
        values = {"folder": folder, "port": port, "upstream": upstream.replace("unix:/", "unix@/")}
        (folder / "both").write_text((folder / "pem").read_text() + (folder / "key").read_text())
        (folder / "haproxy.cfg").write_text(filled("haproxy.cfg", PLAIN_HAPROXY if plain else HAPROXY, **values))
        return program(need("haproxy"), "-db", "-V", "-f", str(folder / "haproxy.cfg"))
    if kind == "envoy":
        host, _, place = upstream.partition(":")
        at = (
            f"pipe: {{ path: {place} }}"
            if host == "unix"
            else "socket_address: " + json.dumps({"address": host, "port_value": int(place)})
        )
        values = {"folder": folder, "port": port, "upstream": at}
        content = filled("envoy.yaml", ENVOY, **values)
        if plain:
            content = re.sub(r"- transport_socket:.*?(?=filters:)", "- ", content, count=1, flags=re.DOTALL)
        (folder / "envoy.yaml").write_text(content)
        return program(need("envoy"), "-c", str(folder / "envoy.yaml"), "--use-dynamic-base-id", "--concurrency", "1")
    (folder / "Caddyfile").write_text(filled("Caddyfile", PLAIN_CADDY if plain else CADDY, **values))
    return program(need("caddy"), "run", "--config", str(folder / "Caddyfile"))


LISTENS = {
    "nginx": "start worker process",
    "caddy": "serving initial configuration",
    "haproxy": "will use",
    "envoy": "all dependencies initialized. starting workers",
}


@pytest.fixture(params=LISTENS)
async def behind(request, serve, certificate) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a server with these settings, and a proxy in front of it."""
    need(request.param)
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *, uds: bool = False, plain: bool = False, server: dict[str, Any] | None = None, **given: Any
        ) -> Site:
            service = await serve(server=server, **given)
            upstream = service.url.removeprefix("http://")
            if uds:
                path = str(certificate / f"{request.param}.socket")
                listening = await asyncio.get_running_loop().create_unix_server(accepts(service), path)
                service.server.servers.append(listening)
                upstream = f"unix:{path}"
            port = free_port()
            proxy = await stack.enter_async_context(started(request.param, certificate, port, upstream, plain=plain))
            await proxy.until_logged(LISTENS[request.param])
            await until(lambda: listens(port), f"{request.param} to listen")
            tls = None if plain else ssl.create_default_context(cafile=certificate / "pem")
            return Site(f"127.0.0.1:{port}", tls, request.param)

        yield start


def statuses(raw: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


def slowly() -> tuple[Reply, asyncio.Event]:
    go = asyncio.Event()
    first, *others = text("a", "b", "c")[1:]
    return Reply([first, Wait(go), *others]), go


async def receive(websocket, kind: str) -> dict[str, Any]:
    """Return the next frame, which is of this kind."""
    frame = json.loads(await websocket.recv())
    assert frame["type"] == kind, frame
    return frame


async def until_end(websocket) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] not in ("done", "error"):
        frames.append(json.loads(await websocket.recv()))
    return frames


@pytest.mark.parametrize("uds", [False, True], ids=["tcp", "uds"])
async def test_frames_arrive_as_they_are_made(uds, behind, fake):
    site = await behind(uds=uds)
    fake.default, go = slowly()
    async with site.socket() as websocket, site.client() as client:
        await websocket.send(json.dumps(CHAT))
        await receive(websocket, "start")
        assert (await receive(websocket, "token"))["content"] == "a"
        async with client.stream("POST", site.stream_url, json=CHAT) as response:
            parts = response.aiter_raw()
            body = await anext(parts)
            assert body == b"data: a\n\n"
            go.set()
            assert joined(await until_end(websocket)) == "bc"
            body += b"".join([part async for part in parts])
    assert "".join(event["data"] for event in events(body)) == "abc[DONE]"


async def test_frames_arrive_as_they_are_made_over_http_2(behind, fake):
    curl = need("curl")
    site = await behind()
    fake.default, go = slowly()
    options = ("-skN", "--http2", "-w", "HTTP %{http_version}", "-d", json.dumps(CHAT), site.stream_url)
    process = await asyncio.create_subprocess_exec(curl, *options, stdout=asyncio.subprocess.PIPE)
    assert await process.stdout.readline() == b"data: a\n"
    go.set()
    rest = await process.stdout.read()
    await process.wait()
    assert rest.endswith(b"HTTP 2")
    assert "".join(event["data"] for event in events(rest)) == "bc[DONE]"


both_schemes = pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])


@both_paths
@both_schemes
async def test_the_body_of_a_request_with_another_upgrade_arrives(plain, behind, fake):
    """On uvicorn's own protocols, too, as these proxies pass no other upgrade on than that of a WebSocket."""
    site = await behind(plain=plain)
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/stream HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {len(body)}\r\n".encode()
    upgrades = [H2C, b"Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n"]
    if site.proxy == "envoy":  # it refuses what it does not know
        refused = await site.raw(head + upgrades.pop().replace(b"Upgrade\r", b"Upgrade, close\r") + b"\r\n" + body)
        assert statuses(refused) == [403]
    for upgrade in upgrades:
        request = head + upgrade.replace(b"Upgrade,", b"Upgrade, close,").replace(b"Upgrade\r", b"Upgrade, close\r")
        for parts in ((request + b"\r\n" + body,), (request, b"\r\n", body), (request + b"\r\n", body[:9], body[9:])):
            raw = await site.raw(*parts)
            assert statuses(raw) == [200]
            assert b"data: [DONE]" in raw
    assert [request.body["messages"] for request in fake.requests] == [HELLO] * 3 * len(upgrades)


@both_schemes
async def test_no_body_becomes_a_request(plain, behind):
    site = await behind(plain=plain)
    head = f"POST /v1/chat/stream HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {len(METRICS)}\r\n".encode()
    last = f"GET /healthz HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode()
    for upgrade in (H2C, b"Connection: Upgrade\r\nUpgrade: websocket\r\n"):
        for parts in ((head + upgrade + b"\r\n" + METRICS, last), (head + upgrade + b"\r\n", METRICS, last)):
            try:
                raw = await site.raw(*parts)
            except ConnectionResetError:
                assert site.proxy == "envoy", "it answers before it has read the body, and closes"
                continue
            assert statuses(raw)[0] in (400, 403)
            assert set(statuses(raw)[1:]) <= {404}, "/healthz stays inside"
            assert b"ws_chat_" not in raw, "the page of metrics"


@both_schemes
async def test_websockets_are_upgraded_in_any_spelling(plain, behind):
    site = await behind(plain=plain)
    async with site.socket(additional_headers={}) as websocket:
        await websocket.send('{"type":"ping"}')
        await receive(websocket, "pong")
    reader, writer = await asyncio.open_connection(*site.host.split(":"), ssl=site.tls)
    writer.write(UPGRADE.replace(b"websocket", b"WebSocket").replace(b"Host: x", f"Host: {site.host}".encode()))
    assert (await reader.readline()).split()[1] == b"101"
    writer.close()


async def test_keys_and_origins(behind):
    site = await behind(api_keys=("key-of-alice",))
    encoded = base64.urlsafe_b64encode(b"key-of-alice").decode().rstrip("=")
    async with site.client() as client:
        refused = await client.post(site.stream_url, json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        without_tls = site.origin.replace("https", "http")
        for origin, status in ((site.origin, 200), ("https://evil.example", 403), (without_tls, 403)):
            response = await client.post(site.stream_url, json=CHAT, headers={**KEY, "Origin": origin})
            assert response.status_code == status
    assert await site.denied() == 401
    assert await site.denied(additional_headers=KEY, origin="https://evil.example") == 403
    async with site.socket(subprotocols=["ws_chat.v1", f"bearer.{encoded}"], origin=site.origin) as websocket:
        assert websocket.subprotocol == "ws_chat.v1"
        await websocket.send(json.dumps(CHAT))
        assert joined(await until_end(websocket)) == "Hello"


async def test_a_named_answer_outlives_a_connection(behind, fake):
    site = await behind()
    fake.default, go = slowly()
    async with site.socket() as websocket:
        await websocket.send(json.dumps({**CHAT, "id": "r1"}))
        await receive(websocket, "start")
        seq = (await receive(websocket, "token"))["seq"]
        websocket.transport.abort()
    async with site.socket() as websocket, site.client() as client:
        await websocket.send(json.dumps({"type": "resume", "id": "r1", "after": seq}))
        assert (await receive(websocket, "start"))["seq"] == seq
        go.set()
        assert joined(await until_end(websocket)) == "bc"
        response = await client.get(f"{site.stream_url}/r1", headers={"Last-Event-ID": "1"})
    assert "".join(event["data"] for event in events(response.content)) == "bc[DONE]"
    assert len(fake.requests) == 1


async def test_a_refusal_for_lack_of_room_has_a_retry_after(behind):
    site = await behind(max_connections=1)
    async with site.socket(), site.client() as client:
        refused = await client.post(site.stream_url, json=CHAT)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        assert await site.denied() == 503


async def test_what_is_the_operators_stays_inside(behind):
    site = await behind()
    inside = ["/metrics", "/docs", "/openapi.json", "/readyz", "/healthz"]
    disguised = ["//metrics", "/%6detrics", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/..%2fmetrics", "/./metrics"]
    twice = ["/static/%252e%252e/metrics", "/v1/%252e%252e/metrics", "/metrics/", "/METRICS"]
    for path in (*inside, *disguised, *twice):
        assert await site.status(path) == 404, path
    assert await site.status("/static/ws-chat.js") == 200


async def test_a_client_that_disconnects_closes_the_upstreams_request(behind, fake):
    site = await behind()
    fake.default = Reply([*text("a")[:2], Hang()])
    async with site.socket() as websocket, site.client() as client:
        await websocket.send(json.dumps(CHAT))
        await receive(websocket, "start")
        await receive(websocket, "token")
        websocket.transport.abort()
        await fake.requests[0].closed.wait()
        async with client.stream("POST", site.stream_url, json=CHAT) as response:
            assert await anext(response.aiter_raw()) == b"data: a\n\n"
        await fake.requests[1].closed.wait()


async def test_large_requests_pass_and_what_is_too_large_is_refused_by_the_server(behind, fake):
    site = await behind()
    large, too_large = ({"messages": [{"role": "user", "content": size * "x"}]} for size in (1_000_000, 4_500_000))
    async with site.socket() as websocket, site.client() as client:
        await websocket.send(json.dumps(large))
        assert joined(await until_end(websocket)) == "Hello"
        assert (await client.post(site.stream_url, json=large)).status_code == 200
        assert all(request.body["messages"] == large["messages"] for request in fake.requests)
        refused = await client.post(site.stream_url, json=too_large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        with contextlib.suppress(ConnectionClosed):
            await websocket.send(json.dumps(too_large))
        with pytest.raises(ConnectionClosed):
            await websocket.recv()
    assert websocket.close_code in (1009, 1006), "a proxy that still writes may lose the reason"
    assert len(fake.requests) == 2


async def test_a_client_cannot_name_its_own_address(behind, caplog):
    site = await behind(server={"access_log": True})
    caplog.set_level(logging.INFO, logger="uvicorn.access")
    async with site.client() as client:
        await client.post(site.stream_url, json=CHAT, headers={"X-Forwarded-For": "192.0.2.1"})
    (line,) = [message for message in caplog.messages if "POST /v1/chat/stream" in message]
    assert line.startswith("127.0.0.1:0 - "), "the proxy's word is taken"
