"""Whatever the network does on either side of it, the same answer comes out: nothing lost, nothing doubled.

First the path of a token without sockets, for any cut of the upstream's bytes and any drop of a reader; then real
connections, reset at random.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load import soak
from relay.test_reader import Tap

from ws_chat.client import backoff
from ws_chat.client.reply import Reply as Received
from ws_chat.protocol.frames import Start, encode
from ws_chat.relay.generation import Generation
from ws_chat.relay.reader import Reader
from ws_chat.stores.memory import MemoryLog
from ws_chat.testing import DONE, chunk, sse, usage_chunk
from ws_chat.upstreams.completion import CompletionParser

TEXTS = st.text(max_size=5)
TEXT_DELTA = TEXTS.map(lambda text: {"content": text})
CALL_DELTA = st.tuples(st.integers(0, 1), TEXTS).map(
    lambda call: {"tool_calls": [{"index": call[0], "function": {"name": "f", "arguments": call[1]}}]}
)
NUMBER_DELTA = st.just({})
"""Stands for a field of its own number, which cannot be joined with that of a neighbour."""
ANSWERS = st.lists(st.one_of(TEXT_DELTA, TEXT_DELTA, CALL_DELTA, NUMBER_DELTA), min_size=5, max_size=40).map(
    lambda deltas: [delta or {"place": place} for place, delta in enumerate(deltas, 1)]
)
CUTS = st.lists(st.integers(1, 800), min_size=10, max_size=60)
DROPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=10, max_size=60)
"""How many frames the sender takes before it drops its reader, and how many of those are still received."""


@given(ANSWERS, CUTS, DROPS)
def test_any_cut_of_the_upstream_and_any_drop_of_a_reader(deltas, cuts, drops):
    generation = Generation("r1", "m", 0.0)
    log = MemoryLog(Start("r1", 0, "m"))
    answer = CompletionParser(log.append, generation.outcome, str)
    received = Received("r1", "{}")
    seen = []
    follower = Follower(log, received, seen)
    fates = iter(drops)

    stream = b"".join([*(sse(chunk(delta)) for delta in deltas), sse(chunk({}, "stop")), sse(usage_chunk()), DONE])
    for read in pieces(stream, cuts):
        answer.feed(read)
        follower.live(next(fates, None))
    answer.end()
    generation.record_first_delta(0.0)
    log.end(generation.finish(log.last, 1.0))
    for fate in fates:
        follower.live(fate)
    follower.live(None)

    whole = [delta for delta in deltas if delta.get("content") != ""]
    assert received.text == "".join(delta.get("content", "") for delta in whole)
    assert arguments(received.tool_calls) == arguments_of(whole)
    assert [frame["place"] for frame in seen if "place" in frame] == [d["place"] for d in deltas if "place" in d]
    seqs = [frame["seq"] for frame in seen if frame["type"] == "token"]
    assert seqs == sorted(set(seqs))
    assert [frame["type"] for frame in seen].count("done") == 1
    assert (received.status, received.seq, received.usage["completion_tokens"]) == ("completed", len(whole) + 1, 3)


class Follower:
    """A client that reads a log, loses its connection, and resumes where it was."""

    def __init__(self, log: MemoryLog, answer: Received, seen: list) -> None:
        self.log = log
        self.answer = answer
        self.seen = seen
        self.connect()

    def connect(self) -> None:
        self.tap = Tap(0)
        self.received = 0
        self.reader = Reader(self.log, json.loads(self.answer._opening).get("after", 0), self.tap, on_end=lambda: None)
        self.reader.open()

    def live(self, fate: tuple[int, int] | None) -> None:
        """Take a few frames, and lose those on their way with the connection; with no fate, take all there is."""
        if self.answer.ended:
            return
        self.tap.open(fate[0] if fate else 10**6)
        self.receive(len(self.tap.frames) - fate[1] if fate else None)
        if fate:
            self.reader.close()
            self.connect()

    def receive(self, most: int | None) -> None:
        for frame in self.tap.frames[self.received : most]:
            received = json.loads(encode(frame))
            self.answer._receive(received)
            self.seen.append(received)
        self.received = len(self.tap.frames)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    found = []
    for cut in cuts:
        found.append(stream[:cut])
        stream = stream[cut:]
    return [piece for piece in [*found, stream] if piece]


def arguments(calls: list) -> dict:
    return {call["index"]: call["function"].get("arguments", "") for call in calls}


def arguments_of(deltas: list) -> dict:
    joined: dict = {}
    for delta in deltas:
        for call in delta.get("tool_calls", []):
            joined[call["index"]] = joined.get(call["index"], "") + call["function"]["arguments"]
    return joined


@pytest.mark.anyio
async def test_connections_that_are_reset_at_random(monkeypatch):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):  # which the soak sets
        monkeypatch.setattr(backoff, name, getattr(backoff, name))
    await soak.drops(generations=16, wanted=50, seed=1)
