"""Measure what a relay adds to each token: sides, scenarios, medians, ratios.

    make bench                        the short form, in under 10 minutes; writes docs/performance.md
    python benchmarks/run.py --runs 5 --seconds 8 --sides ours-ws,vllm-router --scenarios paced,thousand
    python benchmarks/run.py --slow   the same on a slow machine: see below
    python benchmarks/run.py --sides ours-ws --python 3.13=/path/to/python   other Pythons, or builds of the package

The relay has one core; the mock upstream and the readers, both in C, share another. Sides are interleaved, so that a slow
minute of the machine affects all of them. CPU and memory are read from /proc. The load generator checks the number of
every token: one that is missing, doubled or out of order is an error. Everything listens on 127.0.0.1. Needs Linux and
cc; sides that are not installed are named and left out.

`--slow`: two processes that walk through memory share the relay's core, so that its caches are cold, and it may use
60 % of that core, where control groups can be set.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chart import chart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
MOCK, RELAY, REDIS = 9470, 9471, 9472
RELAY_CORE, LOAD_CORE = "0", "1"
GROUPS = {  # 60 % of a core, with version 1 and version 2 of Linux's control groups
    Path("/sys/fs/cgroup/cpu/ws_chat_bench"): {"cpu.cfs_period_us": "20000", "cpu.cfs_quota_us": "12000"},
    Path("/sys/fs/cgroup/ws_chat_bench"): {"cpu.max": "12000 20000"},
}


@dataclass(frozen=True)
class Scenario:
    """Readers, tokens per second of each (0: as fast as possible) and tokens per answer."""

    description: str
    streams: int
    rate: int
    count: int
    slow: int = 0
    messages: int = 1
    idle: bool = False
    shared: bool = False  # all streams read one answer
    kept: bool = False  # answers are named, and the memory of one that has ended counts
    cold: bool = False  # the time from the start of the program to the end of its first answer

    @property
    def warmup(self) -> float:
        """Seconds before measuring: the requests of a crowd cost more than its tokens."""
        return 2 if self.idle or not self.rate else 2 + self.streams / 500


SCENARIOS = {
    "paced": Scenario("100 streams × 50 tokens/s", 100, 50, 500),
    "thousand": Scenario("1,000 × 20", 1000, 20, 500),
    "crowd": Scenario("2,000 × 20", 2000, 20, 500),
    "short": Scenario("50 × 50, answers of 25 tokens", 50, 50, 25),
    "saturated": Scenario("50 streams, as fast as possible", 50, 0, 5000),
    "requests": Scenario("50 clients, answers of one token", 50, 0, 1),
    "history": Scenario("the same, with 20 messages of history", 50, 0, 1, messages=20),
    "slow": Scenario("paced, with 20 slow readers", 120, 50, 500, slow=20),
    "fan-out": Scenario("one answer at 4 tokens/s, 5,000 readers", 5000, 4, 40, shared=True),
    "idle": Scenario("10,000 open sockets", 10000, 1, 1, idle=True),
    "kept": Scenario("50 streams, answers of 500 tokens that are kept", 50, 0, 500, kept=True),
    "cold": Scenario("from the start of the program to the end of an answer of one token", 1, 0, 1, cold=True),
}


@dataclass(frozen=True)
class Side:
    """How to start a relay, and the `kind` of its clients: `ws`, `ws+named`, `text`, `responses` or `openai` (load.c).

    `redis`: with a Redis server, on the core of the load.
    """

    kind: str
    command: Callable[[], list[str] | None]
    scenarios: tuple[str, ...]
    pinned: bool = True
    redis: bool = False


def ours(*options: str, python: str = sys.executable) -> Callable[[], list[str]]:
    # -P: the package that is installed for that Python, not the one in the working directory.
    program = (python, "-P", "-m", "ws_chat", "serve")
    return lambda: [*program, "--port", str(RELAY), "--log-level", "error", *options]


def guarded() -> list[str]:
    """Return the command of our server with a key, an origin and every limit."""
    settings = {
        "API_KEYS": "benchmark",
        "ALLOWED_ORIGINS": "https://chat.example.com",
        "REQUESTS_PER_MINUTE": "1000000",
        "MAX_GENERATIONS_PER_PRINCIPAL": "10000",
        "MODELS": "*",
    }
    return ["env", *(f"WS_CHAT_{name}={value}" for name, value in settings.items()), *ours()()]


def shared() -> list[str]:
    """Return the command of our server with its named generations in Redis."""
    return ["env", f"WS_CHAT_REDIS_URL=redis://127.0.0.1:{REDIS}/0", *ours()()]


def floor() -> list[str] | None:
    """Return the command of floor.py, where picows is installed."""
    if importlib.util.find_spec("picows") is None:
        return None
    return [sys.executable, str(HERE / "floor.py"), str(RELAY), str(MOCK)]


def tutorial(factory: str) -> Callable[[], list[str]]:
    return lambda: [
        *(sys.executable, "-m", "uvicorn", "--factory", "--app-dir", str(HERE), f"tutorial:{factory}"),
        *("--port", str(RELAY), "--log-level", "error", "--no-access-log"),
    ]


def nginx() -> list[str] | None:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="nginx-"))
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;
        events {{ worker_connections 20000; }}
        http {{
          access_log off;
          client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
          uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
          upstream mock {{ server 127.0.0.1:{MOCK}; keepalive 1000; }}
          server {{
            listen 127.0.0.1:{RELAY} backlog=8192;
            location / {{
              proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
              keepalive_requests 1000000;
            }}
          }}
        }}""")
    return [program, "-c", str(config), "-p", str(folder)]


def installed(program: str, *options: str) -> Callable[[], list[str] | None]:
    def command() -> list[str] | None:
        path = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        return [path, *options] if path else None

    return command


def litellm() -> list[str] | None:
    program = installed("litellm")()
    if program is None:
        return None
    config = Path(tempfile.mkdtemp(prefix="litellm-")) / "config.yaml"
    model = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{MOCK}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "mock", "litellm_params": model}]}))
    return [*program, "--config", str(config), "--host", "127.0.0.1", "--port", str(RELAY)]


WORKER = f"http://127.0.0.1:{MOCK}"
ROUTER = ("--host", "127.0.0.1", "--port", str(RELAY), "--log-level", "error", "--max-concurrent-requests", "20000")
ALL = ("paced", "thousand", "crowd", "saturated", "requests", "slow")
NAMED = ("paced", "thousand", "short", "saturated", "requests", "kept")
FEW = ("paced", "saturated", "requests", "cold")
OURS = tuple(name for name in SCENARIOS if name != "kept")
SIDES = {
    "ours-ws": Side("ws", ours(), OURS),
    "ours-named": Side("ws+named", ours(), NAMED),
    "ours-redis": Side("ws+named", shared, NAMED[:-1], redis=True),
    "ours-limits": Side("ws", guarded, ("paced", "thousand", "saturated", "requests")),
    "ours-responses": Side("responses", ours(), ("paced", "thousand", "saturated", "requests", "history")),
    "ours-sse": Side("text", ours(), (*ALL, "fan-out")),
    "floor": Side("ws", floor, ("paced", "thousand", "crowd", "saturated", "requests")),
    "tutorial-async": Side("text", tutorial("create_async_app"), FEW),
    "tutorial-sync": Side("text", tutorial("create_sync_app"), ("requests",)),
    "vllm-router": Side("openai", installed("vllm-router", "--worker-urls", WORKER, *ROUTER), (*ALL, "cold")),
    "sglang-router": Side("openai", installed("sglang-router", "launch", "--worker-urls", WORKER, *ROUTER), FEW),
    "litellm": Side("openai", litellm, ("paced", "requests", "cold")),
    "nginx": Side("openai", nginx, ALL[:-1]),
    "mock": Side("openai", list, ("saturated",)),
    # Not pinned: relay, mock and load share all cores.
    "1-worker": Side("ws", ours("--workers", "1"), ("saturated", "requests"), pinned=False),
    "2-workers": Side("ws", ours("--workers", "2"), ("saturated", "requests"), pinned=False),
}


def main() -> int:
    """Run the benchmark, print a table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="one more ours-ws, with another Python"
    )
    parser.add_argument("--slow", action="store_true", help="on a slow machine")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced, and its chart beside it")
    options = parser.parse_args()
    sides = options.sides.split(",")
    for each in options.python:
        name, _, path = each.partition("=")
        sides.append(f"ours-{name}")
        SIDES[sides[-1]] = Side("ws", ours(python=path), OURS)
    with tempfile.TemporaryDirectory() as folder:
        programs = {name: compile_program(name, Path(folder)) for name in ("mock", "load", "neighbour")}
        results: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for scenario in options.scenarios.split(","):
            for _ in range(options.runs):
                for side in sides:
                    if scenario in SIDES[side].scenarios:
                        result = measure(programs, side, scenario, options.seconds, slow=options.slow)
                        if result:
                            results.setdefault((scenario, side), []).append(result)
    page = table(results, options)
    print(page)
    if options.write:
        before, _, rest = options.write.read_text().partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end -->\n")
        options.write.write_text(f"{before}<!-- table -->\n{page}<!-- end -->\n{after}")
        bars = {scenario: {} for scenario, _ in results}
        for (scenario, side), runs in results.items():
            if cpu := figure(runs, SCENARIOS[scenario]):
                bars[scenario][side] = cpu
        options.write.with_suffix(".svg").write_text(chart(bars))
    broken = [key for key, runs in results.items() if any(run["wrong"] or run["failed"] for run in runs)]
    if broken:
        print("TOKENS LOST, DOUBLED OR OUT OF ORDER, or answers failed:", broken, file=sys.stderr)
    return bool([key for key in broken if key[1].startswith("ours")])


def compile_program(name: str, folder: Path) -> str:
    """Compile a C program of this folder; return its path."""
    subprocess.run(["cc", "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")], check=True)
    return str(folder / name)


def measure(programs: dict[str, str], side: str, scenario: str, seconds: float, *, slow: bool) -> dict[str, Any] | None:
    """Run one side in one scenario. Return None when it is not installed or fails."""
    chosen, what = SIDES[side], SCENARIOS[scenario]
    command = chosen.command()
    redis = (
        installed("redis-server", "--port", str(REDIS), "--bind", "127.0.0.1", "--save", "")() if chosen.redis else []
    )
    if command is None or redis is None:
        print(f"{side} is left out: it is not installed", file=sys.stderr)
        return None
    environ = {**os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{MOCK}/v1", "OPENAI_API_KEY": "none"}
    environ |= {"WS_CHAT_MAX_CONNECTIONS": "50000", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    relay_core = ["taskset", "-c", RELAY_CORE] if chosen.pinned else []
    load_core = ["taskset", "-c", LOAD_CORE] if chosen.pinned else []
    processes = [start([*load_core, programs["mock"], str(MOCK), str(what.rate), str(what.count)], environ)]
    try:
        wait_for(MOCK, processes[-1])
        if slow:
            relay_core += quota()
            limit = str(seconds + what.warmup + 90)
            processes += [start(["taskset", "-c", RELAY_CORE, programs["neighbour"], limit], environ) for _ in range(2)]
        if redis:
            processes.append(start([*load_core, *redis], environ))
            wait_for(REDIS, processes[-1])
        if command:
            started = time.monotonic()
            processes.append(start([*relay_core, *command], environ))
            if what.cold:
                return first_answer(processes[-1].pid, chosen.kind, started)
            wait_for(RELAY, processes[-1])
        port, pids = (RELAY, list(family(processes[-1].pid))) if command else (MOCK, [processes[0].pid])
        kind = "idle" if what.idle else f"{chosen.kind}+shared" if what.shared else chosen.kind
        load = [
            *(*load_core, programs["load"], str(port), kind),
            *(str(what.streams), str(seconds), str(what.warmup), str(what.slow), str(what.messages), *map(str, pids)),
        ]
        done = subprocess.run(load, capture_output=True, text=True, timeout=seconds + 60, check=False)
        if done.returncode:
            print(f"{side} in {scenario}: {done.stderr.strip()}", file=sys.stderr)
            return None
        result: dict[str, Any] = json.loads(done.stdout)
        print(f"{scenario:10} {side:15} {json.dumps(result)}", file=sys.stderr)
        return result
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for folder in GROUPS:
            with contextlib.suppress(OSError):  # there is none
                folder.rmdir()


def first_answer(pid: int, kind: str, started: float) -> dict[str, Any]:
    """Ask until there is an answer; return the seconds since the start of the program, and its CPU time so far."""
    path = "/v1/chat/completions" if kind == "openai" else "/v1/chat/stream"
    body = json.dumps({"model": "mock", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{RELAY}{path}", body, {"Content-Type": "application/json"})
    while time.monotonic() < started + 60:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                if b"[DONE]" in response.read():
                    took = time.monotonic() - started
                    return {"cold": took, "cpu": sum(map(cpu_of, family(pid))), "wrong": 0, "failed": 0}
        except OSError:
            time.sleep(0.01)
    raise TimeoutError("no answer within 60 s")


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quota() -> list[str]:
    """Return the words that start a command in a control group of 60 % of a core; none where that is not possible."""
    for folder, setting in GROUPS.items():
        try:
            folder.mkdir(exist_ok=True)
            for name, value in setting.items():
                (folder / name).write_text(value)
        except OSError:
            continue
        return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    print("control groups cannot be set: the quota is left out", file=sys.stderr)
    return []


def start(command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environ, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(port: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60  # litellm takes long to start
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(0.5)  # a router may still be looking at its upstreams
                if program.poll() is not None:
                    raise RuntimeError(f"another program listens on port {port}")
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after 60 s")


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def table(results: dict[tuple[str, str], list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Return the medians as Markdown, with ratios to ours."""
    lines = [
        (
            f"Medians of {options.runs} interleaved runs of {options.seconds:g} s, {platform.machine()}, Python "
            f"{platform.python_version()}, one core for the relay: `python benchmarks/run.py --runs {options.runs} "
            f"--seconds {options.seconds:g}{' --slow' * options.slow}`."
        ),
        "",
        "| scenario | side | CPU | ÷ ours-ws | per second | added latency p50 / p99 | first token p50 / p99 | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for scenario, what in SCENARIOS.items():
        mine = figure(results.get((scenario, "ours-ws")), what)
        for side in SIDES:
            runs = results.get((scenario, side))
            if runs:
                cpu = figure(runs, what)
                ratio = f"{cpu / mine:.2f}" if mine and cpu else ""
                lines.append(f"| {scenario} | {side} | {row(runs, what, cpu, ratio)} |")
    with_redis = [f"{scenario}: {ratio}" for scenario in SCENARIOS if (ratio := redis_ratios(results, scenario))]
    if with_redis:
        lines += ["", "Redis on ÷ off, medians of the runs one by one (least to most): " + "; ".join(with_redis) + "."]
    legend = [f"*{name}*: {what.description}" for name, what in SCENARIOS.items()]
    return "\n".join([*lines, "", "; ".join(legend) + ".", ""])


def redis_ratios(results: dict[tuple[str, str], list[dict[str, Any]]], scenario: str) -> str:
    """Return what Redis costs: CPU and the time to the first token, as ratios to the same side without it."""
    pairs = list(
        zip(results.get((scenario, "ours-redis"), []), results.get((scenario, "ours-named"), []), strict=False)
    )
    what = SCENARIOS[scenario]
    cpu = [figure([on], what) / figure([off], what) for on, off in pairs]
    first = [on["first_p50_us"] / off["first_p50_us"] for on, off in pairs if off["first_p50_us"]]
    return ", ".join(
        f"{name} {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        for name, each in (("CPU", cpu), ("first token", first))
        if each
    )


def figure(runs: list[dict[str, Any]] | None, what: Scenario) -> float | None:
    """Return the median CPU per token, or per answer of one token, in microseconds. None where none was measured."""
    unit = "answers" if what.count == 1 else "tokens"
    if not runs or what.idle or what.kept or what.cold or not all(run[unit] for run in runs):
        return None
    return statistics.median(run["cpu"] / run[unit] * 1e6 for run in runs)


def milliseconds(*microseconds: float) -> str:
    """Return times in ms; an empty text where none was measured. The load generator counts up to 200 ms."""
    if not any(microseconds):
        return ""
    return " / ".join("> 200" if each >= 199_999 else f"{each / 1000:.1f}" for each in microseconds) + " ms"


def row(runs: list[dict[str, Any]], what: Scenario, cpu: float | None, ratio: str) -> str:
    def median(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    if what.idle:
        each = (median("memory_after_kb") - median("memory_before_kb")) / what.streams
        return f" |  |  |  |  | {each:.1f} KB per socket"
    if what.kept:
        each = statistics.median((run["memory_after_kb"] - run["memory_warm_kb"]) / run["answers"] for run in runs)
        return f" |  |  |  |  | {each:.1f} KB per answer"
    if what.cold:
        return f"{median('cpu'):.2f} s |  |  |  | {median('cold'):.2f} s | "
    if cpu is None:
        return "nothing came before an answer's end |  |  |  |  | "
    unit = "answers" if what.count == 1 else "tokens"
    rate = statistics.median(run[unit] / run["seconds"] for run in runs)
    cost = f"{cpu / 1000:.2f} ms per answer" if what.count == 1 else f"{cpu:.1f} µs per token"
    latency = milliseconds(median("p50_us"), median("p99_us")) if what.rate else ""
    first = milliseconds(median("first_p50_us"), median("first_p99_us"))
    memory = f"{median('memory_after_kb') / 1024:.0f} MB"
    if what.rate and what.streams >= 1000:
        memory += f", {(median('memory_after_kb') - median('memory_before_kb')) / what.streams:.0f} KB per stream"
    return f"{cost} | {ratio} | {rate:,.0f} {unit} | {latency} | {first} | {memory}"


if __name__ == "__main__":
    sys.exit(main())
