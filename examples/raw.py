"""Ask over a bare WebSocket, without the ws_chat package: only frames. Ctrl-C cancels the answer.

python examples/raw.py "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


async def ask(url: str, question: str, model: str | None) -> int:
    """Print one answer; return the exit status."""
    request = {"messages": [{"role": "user", "content": question}]} | ({"model": model} if model else {})
    async with connect(url, max_size=None, close_timeout=1) as websocket:
        loop = asyncio.get_running_loop()
        cancels = []

        def cancel() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends the program
            cancels.append(asyncio.create_task(websocket.send('{"type":"cancel"}')))

        loop.add_signal_handler(signal.SIGINT, cancel)
        await websocket.send(json.dumps(request))
        async for message in websocket:
            frame = json.loads(message)
            match frame["type"]:
                case "token":
                    print(frame.get("content", ""), end="", flush=True)
                case "done":
                    print()
                    if frame["status"] == "cancelled":
                        print(f"(cancelled after {frame['seq'] - 1} deltas)", file=sys.stderr)
                    return 0
                case "error":
                    print(f"\n{frame['error']['code']}: {frame['error']['message']}", file=sys.stderr)
                    return 1
    return 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="やっほ")
    parser.add_argument("--url", default=os.environ.get("WS_CHAT_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--model")
    options = parser.parse_args()
    try:
        # http becomes ws, and https wss.
        url = options.url.replace("http", "ws", 1).rstrip("/") + "/v1/chat/ws"
        return asyncio.run(ask(url, options.question, options.model))
    except ConnectionClosed as error:
        print(f"\nThe connection was closed before the answer was complete: {error}", file=sys.stderr)
    except (OSError, InvalidStatus) as error:
        print(f"{options.url}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
