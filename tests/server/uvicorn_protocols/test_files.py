"""The last file descriptors of a process are for health checks."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket

import httpx
import pytest
from support.peers import UPGRADE
from support.processes import program
from support.service import HELLO
from support.waiting import until

pytestmark = pytest.mark.anyio


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def opened(port: int, sockets: list[socket.socket]) -> bool:
    """Open a WebSocket, and add it to the others; return whether it was not refused."""
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(UPGRADE)
    sockets.append(peer)
    return peer.recv(1000).startswith(b"HTTP/1.1 101 ")


async def test_health_is_answered_when_the_files_are_used_up():
    async with program("ws-chat", "--port", "0", WS_CHAT_MODEL="demo-fast") as server:
        port = await server.port()
        pid = server.process.pid
        limit = open_files(pid) + 60
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        idle = []
        while await asyncio.to_thread(opened, port, idle):
            assert len(idle) < 60
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:
            for _ in range(50):
                response = await client.get("/healthz")
                assert (response.status_code, response.headers["connection"]) == (200, "close")
                refused = await client.post("/v1/chat/stream", json={"messages": HELLO})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert refused.json()["error"]["code"] == "overloaded"
            for peer in (*idle, *silent):
                peer.close()
            await until(lambda: open_files(pid) < limit - 40, "the files to be closed")
            assert (await client.post("/v1/chat/stream", json={"messages": HELLO})).status_code == 200
            scraped = (await client.get("/metrics")).text
        assert 'ws_chat_limits_reached_total{limit="open_files"}' in scraped
        assert float(scraped.partition('limit="open_files"} ')[2].partition("\n")[0]) > 100
        await server.until_logged("Nearly all file descriptors")
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert len([line for line in lines if line["level"] in ("error", "warning")]) <= 2, server.log
