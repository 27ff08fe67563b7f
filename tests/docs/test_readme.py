"""Docs that cannot rot: what they show is run, and what there is they name."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal

import httpx
import pytest
from support.blocks import BLOCKS, CLAIMED, claim, claim_one, each
from support.processes import ROOT, lacking, need, output, program
from support.service import HELLO, events

from ws_chat import Settings
from ws_chat.protocol import frames
from ws_chat.server.observers.metrics import Metrics
from ws_chat.upstreams import demo

pytestmark = pytest.mark.anyio

README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
TARGETS = claim("README.md", "sh", "make run")
COMMANDS = [block for block in claim("README.md", "sh") if block not in TARGETS]
TYPED = claim_one("README.md", "console", "websocat")
TYPED_INTO_A_SHELL = claim_one("README.md", "console", "ws-chat serve").splitlines()
MODULES = (
    "docs.test_architecture",
    "docs.test_clients",
    "docs.test_embedding",
    "docs.test_operators",
    "docs.test_quick_start",
    "docs.test_responses",
    "docs.test_terminal",
    "end_to_end.test_replicas_example",
)


def test_every_block_is_run_or_says_why_not():
    for module in MODULES:
        importlib.import_module(module)  # which claims what it runs
    left = {block.where for block in BLOCKS if block not in CLAIMED and not block.reason}
    assert left == set(), "no test runs these"
    assert len([block for block in BLOCKS if block.reason]) <= 5, "a reason is an exception"


@each(COMMANDS)
async def test_the_commands_of_the_readme_type_an_answer(block, serve, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "curl" in block.text:
        need("curl")
    service = await serve(openai_api_key=None, openai_base_url=None)
    address = service.url.removeprefix("http://")
    command = block.text.replace("127.0.0.1:8000", address).replace(".venv/bin/", "")
    command = re.sub(r"(chat|survive)\.py", rf"\1.py --url {service.ws_url}", command)
    status, out, err = await output("bash", "-c", command)
    assert status == 0, err

    assert "やっほ" in out.decode() or '"content":"や"' in out.decode() or "data: や" in out.decode()
    assert "answers" in out.decode()


async def test_what_is_typed_into_websocat_is_answered_as_it_is_shown(serve):
    service = await serve(openai_api_key=None, openai_base_url=None)
    _, typed, *shown = TYPED.splitlines()
    process = await asyncio.create_subprocess_exec(
        *(need("websocat"), service.ws_url), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    process.stdin.write(typed.encode() + b"\n")
    lines = []
    while not lines or '"done"' not in lines[-1]:
        lines.append((await process.stdout.readline()).decode())
        assert lines[-1], "websocat ended before the answer"
    process.stdin.close()
    await process.wait()

    shown_id = json.loads(shown[0])["id"]
    text = "".join(lines).replace(json.loads(lines[0])["id"], shown_id)
    pattern = re.escape("\n".join(shown) + "\n").replace("…", r"[\s\S]*")
    assert re.fullmatch(pattern, text), text


async def test_the_commands_for_production_start_it(fake):
    install, *commands, start = [line.removeprefix("$ ") for line in TYPED_INTO_A_SHELL]
    assert (install, start) == ("pip install .", "ws-chat serve")
    script = "\n".join([*commands, "exec ws-chat serve --port 0"]).replace("sk-…", "sk-1")
    async with program("bash", "-c", script, OPENAI_BASE_URL=fake.base_url) as server:
        url = f"http://127.0.0.1:{await server.port()}/v1/chat/stream"
        async with httpx.AsyncClient(headers={"Authorization": "Bearer a-long-random-key"}, timeout=None) as client:
            answered = await client.post(url, json=HELLO)
            other = await client.post(url, json={"messages": HELLO, "model": "o9"})
            stranger = await client.post(url, json=HELLO, headers={"Authorization": ""})

    assert "".join(event["data"] for event in events(answered.content)) == "Hello[DONE]"
    assert fake.requests[0].headers["authorization"] == "Bearer sk-1"
    assert (other.status_code, stranger.status_code) == (403, 401)


@each(TARGETS)
async def test_make_run_starts_it(block):
    status, _, _ = await output("make", "-q", "-C", str(ROOT), ".venv/installed")
    if status:
        lacking("the environment of make is not up to date")
    assert block.text.startswith("make run ")
    async with program("make", "-C", str(ROOT), "run", "ARGS=--port 0") as server:
        async with httpx.AsyncClient(timeout=None) as client:
            answered = await client.get(f"http://127.0.0.1:{await server.port()}/readyz")
        pid = int((await server.until_logged(r"[Ss]tarted server process \[(\d+)"))[1])
        os.kill(pid, signal.SIGTERM)  # make itself passes no signal on
        assert await server.process.wait() == 0

    assert answered.status_code == 200


def test_every_make_target_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_is_linked_is_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert "://" in link or target.exists(), (page.name, link)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, (page.name, link)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((.+?\.md)\)", index)) == pages


IN_WORDS = {
    "WS_CHAT_MODELS": "any",
    "WS_CHAT_API_KEYS": "none",
    "WS_CHAT_ALLOWED_ORIGINS": "same host only",
    "WS_CHAT_ALLOWED_HOSTS": "any with keys; without: local",
    "WS_CHAT_REDIS_URL": "none",
}


def test_every_setting_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `((?:WS_CHAT|OPENAI)_\w+)`[^|]*\| ([^|]*)\|", SETTINGS, re.MULTILINE))
    for field in Settings.model_fields.values():
        if field.alias.startswith("WS_CHAT_"):
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
            default = IN_WORDS.get(field.alias, default)
            assert rows.pop(field.alias).strip().strip("`") == default, field.alias
    assert set(rows) == {"OPENAI_API_KEY"}
    assert "`OPENAI_BASE_URL`" in SETTINGS


OF_THE_TERMINAL = {"WS_CHAT_URL", "WS_CHAT_API_KEY", "WS_CHAT_SYSTEM"}


def test_every_setting_and_metric_that_is_named_is_there():
    settings = {field.alias for field in Settings.model_fields.values()}
    names = "|".join(family.name for family in Metrics().registry.collect())
    for page in (
        README,
        *(page.read_text() for page in (ROOT / "docs").glob("*.md")),
        (ROOT / "examples/alerts.yml").read_text(),
    ):
        assert set(re.findall(r"\bWS_CHAT_\w+", page)) <= settings | OF_THE_TERMINAL
        for name in set(re.findall(r"\bws_chat_\w+", page)) - {"ws_chat_url"}:  # a fixture
            assert re.fullmatch(f"({names})(_total|_bucket|_sum|_count)?", name), name


def test_every_frame_is_documented():
    for frame in frames.ServerFrame.__args__:
        assert f'{{"type":"{frame.__struct_config__.tag}"' in PROTOCOL, frame
    for name in ("cancel", "ping", "resume", "token"):
        assert f'{{"type":"{name}"' in PROTOCOL


def test_every_demo_model_is_documented():
    assert {
        name for row in re.findall(r"^\| (`demo.*?) \|", PROTOCOL, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
    } == set(demo.MODELS)


def test_the_frames_of_the_readme_are_frames():
    shown = [line for line in re.findall(r'^\{"type".*$', README, re.MULTILINE) if "…" not in line]
    assert len(shown) >= 3
    for line in shown:
        assert list(json.loads(line))[:2] == ["type", "id"]
