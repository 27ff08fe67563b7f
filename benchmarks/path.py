"""Measure a token's path without sockets, from the parser through the log to a reader: CPU time per token.

    python benchmarks/path.py   the installed package; for a comparison, run both sides several times in turn

Prints the best of five runs, for 1, 8 and 64 tokens in a read.
"""

from __future__ import annotations

import gc
import platform
import time
from typing import Any

from ws_chat.protocol.deltas import Outcome
from ws_chat.protocol.frames import Start, Token
from ws_chat.relay.reader import Reader
from ws_chat.stores.memory import MemoryLog
from ws_chat.upstreams.completion import CompletionParser

STREAMS, TOKENS = 20, 2048
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
    b'"choices":[{"index":0,"delta":{"content":" token%05d"},"logprobs":null,"finish_reason":null}]}\n\n'
)


class Sender:
    writable = True
    tokens = 0

    def write(self, frame: Any) -> None:
        if isinstance(frame, Token) and frame.json:
            self.tokens = frame.seq

    def when_writable(self, _: Any) -> None:
        raise AssertionError("a sender that is always writable was waited for")


def measure(per_read: int) -> float:
    """Return the microseconds of CPU per token."""
    reads = [b"".join(CHUNK % n for n in range(at, at + per_read)) for at in range(0, TOKENS, per_read)]
    parsers, senders = [], []
    for _ in range(STREAMS):
        log, sender = MemoryLog(Start("id", 0, "mock")), Sender()
        parsers.append(CompletionParser(log.append, Outcome(), str))
        senders.append(sender)
        Reader(log, 0, sender, lambda: None).open()
    started = time.process_time()
    for read in reads:
        for parser in parsers:
            parser.feed(read)
    took = time.process_time() - started
    if any(sender.tokens != TOKENS for sender in senders):
        raise AssertionError("tokens were lost")
    return took / TOKENS / STREAMS * 1e6


if __name__ == "__main__":
    gc.freeze()
    best = [f"{min(measure(per_read) for _ in range(5)):.2f}" for per_read in (1, 8, 64)]
    print(f"Python {platform.python_version()}: {' / '.join(best)} µs per token, with 1 / 8 / 64 in a read")
