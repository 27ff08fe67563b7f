"""Ask, and print the answer as it arrives, complete even when the connection breaks. Ctrl-C cancels the answer.

python examples/chat.py "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from ws_chat.client import ClientError, connect


async def ask(url: str, question: str, model: str | None) -> int:
    """Print one answer; return the exit status."""
    async with connect(url, patience=5) as chat:
        reply = chat.ask(question, model=model)
        loop = asyncio.get_running_loop()
        cancels = []

        def cancel() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends the program
            cancels.append(asyncio.create_task(reply.cancel()))

        loop.add_signal_handler(signal.SIGINT, cancel)
        async for text in reply.texts():
            print(text, end="", flush=True)
        print()
        if reply.status == "cancelled":
            print("(cancelled)", file=sys.stderr)
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="やっほ")
    parser.add_argument("--url", default=os.environ.get("WS_CHAT_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--model")
    options = parser.parse_args()
    try:
        return asyncio.run(ask(options.url, options.question, options.model))
    except ClientError as error:
        print(f"\n{error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
