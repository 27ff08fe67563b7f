"""Fuzz: a hundred thousand frames, valid ones and broken ones, at both doors of a server. `make fuzz`.

The upstream behind it answers, breaks, refuses or hangs as chance has it. Every frame must be answered as the contract
says, whatever else runs on its socket, and after each round nothing may be left in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import uvloop
from load.fuzz_sse import REQUESTS, try_requests
from load.fuzz_websocket import FRAMES, try_socket
from support.contract import check
from support.hostile import MAX_BYTES
from support.service import running
from support.waiting import limited, until

from ws_chat import Settings, create_app
from ws_chat.testing import Cut, FakeOpenAI, Garbage, Hang, Reply, Reset, chunk, error_body, sse, text

if TYPE_CHECKING:
    from support.service import Service

    from ws_chat.testing import Recorded

WORKERS = 8
ROUND_LIMIT = 300.0
"""Seconds after which a round counts as hanging."""
A = sse(chunk({"content": "a"}))
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}


class Moody(FakeOpenAI):
    """An upstream that answers as chance has it."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.hangs = True

    def record(self, request: Recorded) -> Reply:
        bodies = [
            *(text("Hel", "lo"), text(*"abcdefgh"), text(), text("a\r", "\nb\u2028")) * 3,
            [sse(chunk({"reasoning_content": "m"}), chunk({"tool_calls": [CALL]}), chunk({}, "tool_calls"))],
            [sse(chunk({"refusal": "no"}), chunk({"content": "a"}, logprobs={"content": [{"token": "a"}]})), *text()],
            text("a", finish_reason=None),
            [A, Cut()],
            [A, Reset()],
            [A, Garbage()],
            [A, sse({"error": {"message": "broken"}})],
            [A, b"data: {no\n\n"],
            [b"<html>"],
        ]
        if self.hangs:
            bodies += [[A, Hang()], [Hang()]] * 3
        if self.chance.random() < 0.15:
            status = self.chance.choice([400, 401, 404, 422, 429, 500])
            return Reply([error_body("no")], status, {"Content-Type": "application/json", "x-should-retry": "false"})
        return Reply(self.chance.choice(bodies))


class Faults(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def nothing_left(service: Service, before: set[asyncio.Task[Any]]) -> None:
    """Wait until all that ran has ended."""
    await until(
        lambda: not (service.relay.running or service.connections.open or asyncio.all_tasks() - before),
        "all generations, connections and tasks to end",
    )
    logs = service.relay._store._logs
    check(not [key for key in logs if not key.named], "unnamed generations are removed", list(logs))


async def fuzz(frames: int, seed: int, *, first_round: int = 0, seconds: float | None = None) -> Counter[str]:
    """Try so many frames, or for so long; return how often each answer was given. Raises ContractError."""
    faults = Faults()
    logging.getLogger().addHandler(faults)
    deadline = None if seconds is None else time.monotonic() + seconds
    fake = Moody(random.Random(seed))
    await fake.start()
    settings = Settings(
        openai_base_url=fake.base_url,
        openai_api_key="sk-operator-key",
        max_frame_bytes=MAX_BYTES,
        resume_window=0.2,
        retention=5,
        max_generations=20,
        max_generations_per_connection=4,
    )
    answers: Counter[str] = Counter()
    try:
        async with running(create_app(settings), settings) as service:
            number = first_round
            while answers["frames"] < frames and (deadline is None or time.monotonic() < deadline):
                try:
                    await limited(one_round, ROUND_LIMIT)(service, fake, f"{seed}/{number}", answers)
                    check(not faults.records, "nothing is logged as an error", *faults.records)
                except BaseException as error:
                    error.add_note(f"seed {seed}, round {number}")
                    raise
                number += 1
    finally:
        await fake.stop()
        logging.getLogger().removeHandler(faults)
    check(not faults.records, "nothing is logged as an error", *faults.records)
    return answers


async def one_round(service: Service, fake: Moody, name: str, answers: Counter[str]) -> None:
    """Try frames on many sockets at once, then requests, and look for what is left after each."""
    before = asyncio.all_tasks()
    ids = [f"{name.replace('/', '.')}-{number}" for number in range(30)]
    fake.requests.clear()
    for trying in (try_socket, try_requests):
        fake.hangs = trying is try_socket  # the end of a request might be waited for, and none be there to cancel it
        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(trying(service, random.Random(f"{name}/{worker}"), ids, answers))
        await nothing_left(service, before)
    answers["frames"] += WORKERS * FRAMES
    answers["requests"] += WORKERS * REQUESTS


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, help="stop after so long, however few frames there were")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--round", type=int, default=0, help="begin at this round, which a fault names")
    options = parser.parse_args()
    answers = uvloop.run(fuzz(options.frames, options.seed, first_round=options.round, seconds=options.seconds))
    frames, requests = answers.pop("frames"), answers.pop("requests")
    print(f"{frames} frames and {requests} requests (seed {options.seed}): answered as the contract says, nothing left")
    print(", ".join(f"{name} {count}" for name, count in answers.most_common()))


if __name__ == "__main__":
    main()
