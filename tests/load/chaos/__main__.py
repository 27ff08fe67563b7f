"""Break replicas and their Redis in every way, and check what readers see: `make chaos`.

It runs real replicas, a real Redis with a secondary, and a scripted upstream, for a limited time and from a seed. It
records every upstream request and every frame of every reader, and checks the record afterwards (`checker`). It prints a
table, and exits with a status other than 0 if there was a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import uvloop
from load.chaos.checker import Violation, check
from load.chaos.history import History
from load.chaos.load import loaded
from load.chaos.nemeses import NEMESES, Nemesis
from load.chaos.site import Site, site
from support.processes import ROOT

RESUME_WINDOW = 15.0
"""Seconds: longer than any nemesis lets Redis hang."""
SETTLED_WITHIN = 40.0
"""Seconds after the last strike in which every reader should end. The others are checked as they are then."""
SHOWN = 3
"""Violations of each kind that are printed in full."""


async def one(name: str, seed: int, seconds: float, server: Path, rate: float, folder: Path) -> History:
    """Run the load under a nemesis for `seconds`, and until all of it has ended. Logs go to `folder`."""
    this = asyncio.current_task()
    assert this
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that no replica is left behind
    nemesis = NEMESES[name]
    history = History(seed, name, nemesis.retention, RESUME_WINDOW)
    about = {"secondary": nemesis.secondary, "clock": nemesis.clock, "workers": nemesis.workers}
    async with site(history, server, folder, **about) as here:
        async with loaded(here, seed, rate) as load, asyncio.TaskGroup() as group:
            chance = random.Random(f"{name}/{seed}")
            if nemesis.often:
                striking = group.create_task(strike(here, nemesis, chance, seconds))
                await (load.reuse(seconds) if nemesis.load == "reuse" else load.mixed(seconds))
                await striking
            else:
                await load.crowd()
                await nemesis.strike(here, chance)
            await load.end(SETTLED_WITHIN)
        history.end = time.monotonic()
    return history


async def strike(here: Site, nemesis: Nemesis, chance: random.Random, seconds: float) -> None:
    """Let a nemesis strike repeatedly until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline - nemesis.pause:
        await asyncio.sleep(nemesis.pause * chance.uniform(0.7, 1.3))
        await nemesis.strike(here, chance)
        await asyncio.sleep(nemesis.pause)


def report(history: History, violations: list[Violation], seconds: float) -> str:
    """Return a line about a run, and its violations."""
    kinds = Counter(violation.kind for violation in violations)
    readers = [reader for reader in history.readers if reader.id]
    frames = sum(event.kind == "frame" for reader in readers for event in reader.events)
    lag = max((lag for _, lag in history.lags), default=0.0)
    found = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "-"
    line = f"{history.nemesis:13} {history.seed:6} {seconds:4.0f} s {len(history.runs):5} {len(readers):6} {frames:7}"
    lines = [f"{line} {lag:5.1f} s {len(violations):5}  {found}"]
    for kind in kinds:
        same = [violation for violation in violations if violation.kind == kind]
        lines += [f"    {kind}: {one.who}: {one.what:.400}" for one in same[:SHOWN]]
    return "\n".join(lines)


HEAD = f"{'nemesis':13} {'seed':>6} {'time':>6} {'runs':>5} {'readers':>6} {'frames':>7} {'lag':>6} {'found':>5}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seconds", type=float, default=25, help="for which each nemesis strikes")
    parser.add_argument("--nemesis", default=",".join(NEMESES), help=f"of {', '.join(NEMESES)}")
    parser.add_argument("--rate", type=float, default=1.0, help="generations that start in a second")
    parser.add_argument("--server", type=Path, default=ROOT, help="a checkout with its .venv, whose `ws-chat` is run")
    parser.add_argument("--keep", type=Path, help="a folder for the histories, as JSON, and the logs of the replicas")
    options = parser.parse_args()
    logging.getLogger("ws_chat.client").setLevel(logging.ERROR)  # it logs every retry
    print(HEAD, flush=True)
    total = 0
    for seed in range(options.seed, options.seed + options.seeds):
        for name in options.nemesis.split(","):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                place = options.keep / f"{name}-{seed}" if options.keep else Path(folder)
                place.mkdir(parents=True, exist_ok=True)
                history = uvloop.run(one(name, seed, options.seconds, options.server, options.rate, place))
            violations = check(history)
            total += len(violations)
            print(report(history, violations, time.monotonic() - began), flush=True)
            if options.keep:
                (place / "history.json").write_text(json.dumps(asdict(history)))
    print(f"{total} violations", flush=True)
    sys.exit(bool(total))


if __name__ == "__main__":
    main()
