"""Peers that stop without a word, and crowds that only stay: the plug is pulled for real, on processes and networks."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from support.clock import advance, with_clock
from support.peers import accepts, all_closed, connected, upgrade
from support.processes import output
from support.service import HELLO, joined

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


@with_clock
async def test_a_stopped_upstream_is_a_timeout_and_affects_no_other(serve):
    """SIGSTOP: its kernel still answers, and nobody else does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", UPSTREAM, str(Path(__file__).parent)), stdout=asyncio.subprocess.PIPE
    )
    try:
        base_url = (await process.stdout.readline()).decode().strip()
        stopped = await serve(openai_base_url=base_url, upstream_timeout=20)
        other = await serve()
        async with stopped.socket(ping_interval=None) as socket_, other.socket(ping_interval=None) as elsewhere:
            await socket_.send({"messages": HELLO})
            said = ""
            while said != "ab":
                said += (await socket_.receive()).get("content", "")
            process.send_signal(signal.SIGSTOP)
            assert joined(await elsewhere.chat()) == "Hello"
            advance(20)
            assert (await socket_.until_end())[-1]["error"]["code"] == "upstream_timeout"
        unanswered = await serve(openai_base_url=base_url, upstream_timeout=0.1)
        async with unanswered.socket() as socket_:
            assert (await socket_.chat())[-1]["error"]["code"] == "upstream_timeout", "also one that is not answered"
        assert stopped.relay.running == 0
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def cable():
    """Connect two network namespaces; give the server's, its address, the peer's, and what pulls the cable.

    Both ends are in namespaces of their own, because a browser gives up what it loads when the network of the machine
    changes.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    # Another run of the tests may have its own at the same time.
    server, peer = f"ws{os.getpid()}a", f"ws{os.getpid()}b"
    network = ipaddress.IPv4Address("10.231.0.0") + os.getpid() % (1 << 14) * 4

    async def ip(*command: str) -> int:
        return (await output("ip", *command))[0]

    try:
        if await ip("netns", "add", server) or await ip("netns", "add", peer):
            pytest.skip("no network namespace can be made here")
        ends = ("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", peer)
        if await ip("-n", server, *ends):
            pytest.skip("no virtual cable can be made here")
        for number, name in enumerate((server, peer), 1):
            await ip("-n", name, "addr", "add", f"{network + number}/30", "dev", "cable")
            await ip("-n", name, "link", "set", "cable", "up")
        yield server, str(network + 1), peer, lambda: ip("-n", server, "link", "set", "cable", "down")
    finally:
        await ip("netns", "del", server)
        await ip("netns", "del", peer)


PEER = {
    "sse": """
import signal, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
body = b'{"messages":[{"role":"user","content":"hi"}]}'
peer.sendall(b"POST /v1/chat/stream HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
print(peer.recv(1000), flush=True)
signal.pause()
""",
    "websocket": """
import signal, sys
from websockets.sync.client import connect
with connect(f"ws://{sys.argv[1]}:{sys.argv[2]}/v1/chat/ws", open_timeout=None, ping_interval=None) as peer:
    peer.send('{"messages":[{"role":"user","content":"hi"}]}')
    print(peer.recv(), flush=True)
    signal.pause()
""",
}
"""Programs that ask, read the beginning of the answer, and stay."""


@pytest.mark.parametrize("door", PEER)
async def test_a_peer_whose_network_is_cut_is_dropped(door, serve, fake, monkeypatch):
    """Half-open: no close, no reset, nothing ever comes again. A ping that nobody acknowledges tells."""
    monkeypatch.setattr("ws_chat.server.exchange.PING_INTERVAL", 0.2)
    fake.default = Reply([*text("a")[:2], Hang()])
    async with cable() as (namespace, address, name, pull):
        # The write timeout ends it, or the ping timeout: when the last ping had come through, and its pong had not.
        service = await serve(write_timeout=0.5, server={"ws_ping_interval": 0.2, "ws_ping_timeout": 20})
        port = await also_on(service, namespace, address)
        command = ("ip", "netns", "exec", name, sys.executable, "-c", PEER[door], address, str(port))
        peer = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert await peer.stdout.readline(), "the peer has read nothing"
            request = await fake.request()
            await pull()
            await request.closed.wait()
            await all_closed(service)
        finally:
            peer.kill()
            await peer.wait()


async def also_on(service, namespace: str, address: str) -> int:
    """Let the server listen in a network namespace too; return the port."""
    listening = await asyncio.to_thread(listen_in, namespace, address)
    server = await asyncio.get_running_loop().create_server(accepts(service), sock=listening)
    service.server.servers.append(server)
    return listening.getsockname()[1]


def listen_in(namespace: str, address: str) -> socket.socket:
    """Return a socket that listens in a network namespace. The thread that calls this goes there and back."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        if setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            return socket.create_server((address, 0))
        finally:
            if setns(home.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")


async def test_idle_sockets_cost_little_memory_and_delay_no_answer(serve):
    """A few hundred; tests/load/stress.py opens ten thousand."""
    count = 300
    service = await serve(server={"ws_ping_interval": None})
    before = resident(os.getpid())
    idle = [await connected(service) for _ in range(count)]
    for peer in idle:
        await upgrade(peer)
    assert service.connections.open == count
    each = (resident(os.getpid()) - before) / count
    async with service.socket() as talking:
        assert joined(await talking.chat()) == "Hello"
    for peer in idle:
        peer.close()
    await all_closed(service)
    assert each < 64, f"{each:.1f} KB for each idle socket"


def resident(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
