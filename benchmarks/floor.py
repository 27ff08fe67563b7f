"""The floor in Python: picows on uvloop, and nothing that a product needs. No checks, no log, no resume, no errors.

A message starts a request on a kept connection; each event's content becomes a token frame. Needs `pip install picows`.

    python benchmarks/floor.py PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import re
import sys

import httptools
import uvloop
from picows import WSListener, WSMsgType, ws_create_server

CONTENT = re.compile(rb'"delta":\{"content":"((?:[^"\\]|\\.)*)"')


class Upstream(asyncio.Protocol):
    """A connection to the upstream, with one answer at a time."""

    idle: list[Upstream] = []  # noqa: RUF012  (the pool)

    def __init__(self) -> None:
        self.client = None
        self.seq = 0
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        found = CONTENT.findall(body)
        if found:
            self.seq += len(found)
            frame = b'{"type":"token","id":"a","seq":%d,"content":"%b"}' % (self.seq, b"".join(found))
            self.client.send(WSMsgType.TEXT, frame)

    def on_message_complete(self) -> None:
        self.client.send(WSMsgType.TEXT, b'{"type":"done","id":"a","seq":%d}' % (self.seq + 1))
        self.parser = httptools.HttpResponseParser(self)
        self.idle.append(self)


class Client(WSListener):
    """A socket of a client."""

    def __init__(self, port: int) -> None:
        self.port = port

    def on_ws_connected(self, transport) -> None:
        self.socket = transport

    def on_ws_frame(self, transport, frame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            body = frame.get_payload_as_bytes()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            asyncio.get_running_loop().create_task(self.ask(head + body))

    async def ask(self, request: bytes) -> None:
        if Upstream.idle:
            upstream = Upstream.idle.pop()
        else:
            _, upstream = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", self.port)
        upstream.client, upstream.seq = self.socket, 0
        upstream.transport.write(request)


async def main() -> None:
    """Serve for ever."""
    port, upstream = map(int, sys.argv[1:])
    server = await ws_create_server(lambda _: Client(upstream), "127.0.0.1", port, backlog=8192)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
