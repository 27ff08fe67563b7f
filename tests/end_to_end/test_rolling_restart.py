"""A rolling restart of replicas behind each proxy, with the examples as they stand: no request is refused, no answer cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.processes import ROOT, free_port, listens, need, program
from support.service import HELLO, Service, events, running
from support.waiting import until
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidStatus

from ws_chat import Settings, create_app
from ws_chat.client import connect
from ws_chat.relay.events import ConnectionOpened
from ws_chat.testing import Reply, Wait, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

FILES = {"nginx": "nginx.conf", "caddy": "Caddyfile", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml"}
SOCKETS = 20
ITS_OWN = "use of closed network connection"
"""In Caddy's log: it closed the connection itself. Caddy 2.6 does so now and then with a fast answer to a large request."""
LARGE = [{"role": "user", "content": 20_000 * "x"}]
"""More than the buffer of HAProxy."""


def command(proxy: str, folder: Path, ports: list[int], site: int) -> list[str]:
    """Return the command of a proxy with its example, in which only the ports are others."""
    content = (ROOT / "examples/replicas" / FILES[proxy]).read_text()
    for place, port in (("8080", site), ("8001", ports[0]), ("8002", ports[1])):
        assert content.count(place) >= 1, place
        content = content.replace(place, str(port))
    if proxy == "caddy":
        content = f"{{\n\tadmin off\n\tstorage file_system {folder}\n}}\n{content}"
    file = folder / FILES[proxy]
    file.write_text(content)
    path = need(proxy)
    user = ["-g", "user root;"] if os.geteuid() == 0 else []  # whose folder it is
    return {
        "nginx": [path, "-p", str(folder), "-c", str(file), *user],
        "caddy": [path, "run", "--config", str(file), "--adapter", "caddyfile"],
        "haproxy": [path, "-db", "-f", str(file)],
        "envoy": [path, "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"],
    }[proxy]


class Site:
    """Two replicas, and the proxy in front of them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ports = [free_port(), free_port()]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.proxy: Any = None
        self._settings = settings
        self._stacks: dict[int, contextlib.AsyncExitStack] = {}
        self.replicas: dict[int, Service] = {}
        self.served = {0: 0, 1: 0}
        """Connections that each replica has had since its start."""

    async def start(self, place: int) -> None:
        settings = Settings(**self._settings)
        self._stacks[place] = stack = contextlib.AsyncExitStack()
        self.served[place] = 0

        def observe(event: object) -> None:
            self.served[place] += isinstance(event, ConnectionOpened)

        app = create_app(settings, observers=[observe])
        self.replicas[place] = await stack.enter_async_context(running(app, settings, port=self.ports[place]))

    async def stop(self, place: int) -> None:
        """Do what `ws-chat serve` does on SIGTERM, to the end."""
        await self._stacks.pop(place).aclose()

    async def close(self) -> None:
        for place in list(self._stacks):
            await self.stop(place)

    def sockets(self, place: int) -> int:
        """Return the number of open sockets of a replica."""
        return sum(each.caller.transport == "websocket" for each in self.replicas[place].connections._open)

    @property
    def cut(self) -> list[str]:
        """Return the lines of Caddy's log about answers that it did not get to their ends."""
        return [line for line in self.proxy.log.splitlines() if "incomplete response" in line]

    async def status(self) -> int:
        async with httpx.AsyncClient(timeout=None) as client:
            return (await client.get(self.url)).status_code


async def delay_of_drain(seconds: float) -> None:
    """Sleep in small parts: if this process is stopped, its replicas answer no health check meanwhile."""
    for _ in range(round(20 * seconds)):
        await asyncio.sleep(0.05)


@pytest.fixture(params=FILES)
async def site(request, shared, fake, tmp_path, monkeypatch) -> AsyncIterator[Site]:
    """Two replicas on one Redis, behind a proxy that has found both of them."""
    monkeypatch.setattr("ws_chat.server.app.asyncio", SimpleNamespace(sleep=delay_of_drain))
    # Proxies that check their replicas get the time for it that the examples name.
    delay = 0 if request.param in ("nginx", "envoy") else 3
    settings = {"openai_base_url": fake.base_url, "openai_api_key": "k", "redis_urls": (shared.url,)}
    site = Site({**settings, "drain_timeout": 600, "drain_delay": delay})
    started = program(*command(request.param, tmp_path, site.ports, site.port))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(site.close)
        for place in (0, 1):
            await site.start(place)
        site.proxy = await stack.enter_async_context(started)
        await until(lambda: listens(site.port), f"{request.param} to listen")

        async def ready() -> bool:
            return await site.status() == 200

        await until(ready, f"{request.param} to find its replicas")
        yield site
    # "context canceled": the client has left.
    cut = [line for line in site.cut if "context canceled" not in line and ITS_OWN not in line]
    assert cut == [], "only Caddy's log says why an answer was cut: to its client it ends in order"


class Load:
    """Requests of each kind, one after the other, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.done: Counter[str] = Counter()
        self.refused: list[str] = []
        self._url = url
        self._stream = f"{url}/v1/chat/stream"

    async def run(self) -> None:
        while True:
            name = str(uuid.uuid4())
            await self._request("unnamed", "POST", self._stream, json={"messages": HELLO})
            await self._request("large", "POST", self._stream, json={"messages": LARGE})
            await self._request("named", "POST", self._stream, json={"messages": HELLO, "id": name})
            await self._request("follow", "GET", f"{self._stream}/{name}")
            await self._socket()

    async def _request(self, kind: str, method: str, url: str, **given: Any) -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            response = await client.request(method, url, **given)
        if response.status_code == 200 and [each["data"] for each in events(response.content)[-1:]] == ["[DONE]"]:
            self.done[kind] += 1
        else:
            self.refused.append(f"{kind}: {response.status_code} {response.text[:200]!r} {response.headers}")

    async def _socket(self) -> None:
        try:
            socket = await open_socket(self._url.replace("http", "ws") + "/v1/chat/ws", open_timeout=None)
            await socket.send('{"type":"ping"}')
            while json.loads(await socket.recv())["type"] != "pong":
                pass  # goaway
            socket.transport.abort()  # Envoy takes a second to close a connection in order
            self.done["socket"] += 1
        except InvalidStatus as error:
            self.refused.append(f"socket: {error.response.status_code}")


async def test_a_rolling_restart_refuses_nothing_and_cuts_no_answer(site, fake):
    go = asyncio.Event()
    first, *others = text("a", "b", "c")[1:]
    fake.replies += [Reply([first, Wait(go), *others])] * 4
    async with contextlib.AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(connect(site.url)) for _ in range(4)]
        replies = [chat.ask("long") for chat in chats]
        for reply in replies:
            await anext(aiter(reply))
        load = Load(site.url)
        requests = asyncio.create_task(load.run())
        for place in (0, 1):
            stopping = asyncio.create_task(site.stop(place))
            await until(lambda place=place: site.replicas[place].relay.draining, "the drain")
            if place == 0:
                # The readers are at the other replica, and this one produces what it has begun.
                await until(lambda: site.sockets(1) >= 4, "readers to move")
                assert not stopping.done()
                go.set()
            await stopping
            before = sum(load.done.values())
            await until(lambda before=before: sum(load.done.values()) >= before + 20, "requests while it is away")
            await site.start(place)
            await until(lambda place=place: site.served[place], "the proxy to find it again")
        assert [(await reply).text for reply in replies] == ["abc"] * 4
        # Sockets that stay: a proxy that has seen failures lets them in all the same.
        address = site.url.replace("http", "ws") + "/v1/chat/ws"
        sockets = await asyncio.gather(*(open_socket(address, open_timeout=None) for _ in range(SOCKETS)))
        requests.cancel()
        for socket in sockets:
            socket.transport.abort()
        await asyncio.gather(*(chat.close() for chat in chats))
    cut_by_proxy = [line for line in site.cut if ITS_OWN in line]
    assert load.refused[len(cut_by_proxy) :] == [], cut_by_proxy
    assert set(load.done) == {"unnamed", "large", "named", "follow", "socket"}
