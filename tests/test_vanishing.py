"""Peers that stop without a word, and crowds that only stay: the plug is pulled for real, on processes and networks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from conftest import HELLO, joined
from processes import output, program
from test_holding import UPGRADE, nobody

from ws_chat.testing import Hang, Reply, text

pytestmark = pytest.mark.anyio

UPSTREAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from ws_chat.testing import FakeOpenAI, Hang, Reply, text
async def main():
    fake = FakeOpenAI()
    fake.default = Reply([*text("a", "b")[:3], Hang()])
    await fake.start()
    print(fake.base_url, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_an_upstream_that_is_stopped_is_a_timeout_and_disturbs_nobody(serve):
    """SIGSTOP: its kernel still answers, and nobody else does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", UPSTREAM, str(Path(__file__).parent)), stdout=asyncio.subprocess.PIPE
    )
    try:
        base_url = (await process.stdout.readline()).decode().strip()
        stopped = await serve(openai_base_url=base_url, upstream_timeout=0.5)
        other = await serve()
        async with stopped.socket() as socket_, other.socket() as elsewhere:
            await socket_.send({"messages": HELLO})
            while not (await socket_.receive()).get("content", "").endswith("b"):
                pass
            process.send_signal(signal.SIGSTOP)
            assert joined(await elsewhere.chat()) == "Hello"
            assert (await socket_.until_end())[-1]["error"]["code"] == "upstream_timeout"
            assert (await socket_.chat())[-1]["error"]["code"] == "upstream_timeout", "also one that is not answered"
        assert stopped.relay.running == 0
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def cable():
    """Give the name of a network namespace, an address of ours that it reaches, and what pulls the cable."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name, ours, theirs = f"ws{os.getpid()}", f"ws{os.getpid()}a", f"ws{os.getpid()}b"

    async def ip(*command: str) -> int:
        return (await output("ip", *command))[0]

    try:
        if await ip("netns", "add", name) or await ip("link", "add", ours, "type", "veth", "peer", "name", theirs):
            pytest.skip("no network namespace can be made here")
        await ip("link", "set", theirs, "netns", name)
        await ip("addr", "add", "10.231.7.1/30", "dev", ours)
        await ip("link", "set", ours, "up")
        await ip("-n", name, "addr", "add", "10.231.7.2/30", "dev", theirs)
        await ip("-n", name, "link", "set", theirs, "up")
        yield name, "10.231.7.1", lambda: ip("link", "set", ours, "down")
    finally:
        await ip("link", "del", ours)
        await ip("netns", "del", name)


PEER = {
    "sse": "import socket,sys,time\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
    'b=b\'{"messages":[{"role":"user","content":"hi"}]}\'\n'
    's.sendall(b"POST /v1/chat/stream HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n%b"%(len(b),b))\n'
    "print(s.recv(1000),flush=True)\ntime.sleep(60)",
    "websocket": "import sys,asyncio\nfrom websockets.asyncio.client import connect\nasync def main():\n"
    " s=await connect(f'ws://{sys.argv[1]}:{sys.argv[2]}/v1/chat/ws')\n"
    ' await s.send(\'{"messages":[{"role":"user","content":"hi"}]}\')\n print(await s.recv(),flush=True)\n'
    " await asyncio.sleep(60)\nasyncio.run(main())",
}


@pytest.mark.parametrize("door", PEER)
async def test_a_peer_whose_cable_is_pulled_is_dropped(door, serve, fake, monkeypatch):
    """Half-open: no close, no reset, nothing ever comes again. A ping that nobody acknowledges tells."""
    monkeypatch.setattr("ws_chat.server.chat.sse.PING_INTERVAL", 0.2)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with cable() as (name, address, pull):
        settings = {"ws_ping_interval": 0.2, "ws_ping_timeout": 20}
        service = await serve(write_timeout=0.5, server=settings)
        port = service.url.rsplit(":", 1)[1]
        # The server listens on the loopback only: this carries the bytes of one connection to it.
        carrier = await asyncio.create_subprocess_exec(
            *(
                "ip",
                "netns",
                "exec",
                name,
                sys.executable,
                "-c",
                PEER[door],
                address,
                await forward(service, address, port),
            ),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert await carrier.stdout.readline()
            request = await fake.request()
            await pull()
            await asyncio.wait_for(request.closed.wait(), 30)
            await nobody(service)
        finally:
            carrier.kill()
            await carrier.wait()


async def forward(service, address: str, _: str) -> str:
    """Let the server listen on one more address, which only the namespace reaches; return the port."""
    listening = socket.socket()
    listening.bind((address, 0))
    config, state = service.server.config, service.server.server_state
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state=service.server.lifespan.state),
        sock=listening,
    )
    service.server.servers.append(server)
    return str(listening.getsockname()[1])


async def test_ten_thousand_idle_sockets(capsys):
    """They cost memory, which is told, and nobody a token."""
    count = 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 1000:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    async with program("ws-chat", "serve", "--port", "0", "--log-level", "info", WS_CHAT_UPSTREAM="demo") as server:
        port = await server.port()
        url = f"http://127.0.0.1:{port}"
        drain_log = asyncio.create_task(server.process.stderr.read())
        before = resident(server.process.pid)
        idle = []
        for _ in range(count):
            peer = socket.socket()
            peer.setblocking(False)
            await loop.sock_connect(peer, ("127.0.0.1", port))
            await loop.sock_sendall(peer, UPGRADE)
            idle.append(peer)
        async with httpx.AsyncClient(timeout=30) as client:
            while await open_sockets(client, url) < count:
                pass
            each = (resident(server.process.pid) - before) / count
            body = {"messages": HELLO, "model": "demo-fast"}
            assert (await client.post(url + "/v1/chat/stream", json=body)).status_code == 200
            for peer in idle:
                peer.close()
            while await open_sockets(client, url):
                pass
        drain_log.cancel()
        await asyncio.wait({drain_log})
    with capsys.disabled():
        print(f"\n{count} idle sockets: {each:.1f} KB each")
    assert each < 64


async def open_sockets(client: httpx.AsyncClient, url: str) -> float:
    figures = (await client.get(url + "/metrics")).text
    found = re.search(r'^ws_chat_connections\{door="websocket"\} (\S+)$', figures, re.MULTILINE)
    return float(found[1]) if found else 0


def resident(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
