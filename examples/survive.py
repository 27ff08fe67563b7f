"""Print a whole answer over a network that breaks every second: the client repairs itself.

python examples/survive.py "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from urllib.parse import urlsplit

from ws_chat.client import ClientError, ConnectionLostError, connect

PATIENCE = 5
"""Seconds to go on trying to reach a server."""


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the connection breaks."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def ask(url: str, question: str, model: str | None) -> None:
    """Stand between the client and the server, break every connection after a second, and print one answer."""
    breaks = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal breaks
        try:
            server_reader, server_writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        except OSError:
            writer.close()  # the client tries again
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))
        breaks += 1
        writer.transport.abort()
        server_writer.transport.abort()

    network = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = network.sockets[0].getsockname()[1]
    address = f"ws://127.0.0.1:{port}"
    # `on_retry` replaces the client's own warnings: these breaks are intended.
    async with network, connect(address, patience=PATIENCE, on_retry=lambda *_: None) as chat:
        async for text in chat.stream(question, model=model):
            print(text, end="", flush=True)
    print(f"\n(the connection broke {breaks} times)", file=sys.stderr)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="やっほ")
    parser.add_argument("--url", default=os.environ.get("WS_CHAT_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--model")
    options = parser.parse_args()
    try:
        asyncio.run(ask(options.url, options.question, options.model))
    except ConnectionLostError:
        print(f"{options.url} cannot be reached", file=sys.stderr)
        return 1
    except ClientError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
