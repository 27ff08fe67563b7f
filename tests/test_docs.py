"""Docs that cannot rot: what they show is run, and what there is they name."""

from __future__ import annotations

import json
import re

import pytest
from processes import ROOT, need, output

from ws_chat import frames
from ws_chat.observers.metrics import Metrics
from ws_chat.settings import Settings
from ws_chat.upstreams import demo

pytestmark = pytest.mark.anyio

README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
COMMANDS = [
    block for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "make" not in block
]


@pytest.mark.parametrize("block", COMMANDS)
async def test_the_commands_of_the_readme_type_an_answer(block, serve, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program in ("curl", "websocat", "wscat"):
        if program in block:
            need(program)
    service = await serve(openai_api_key=None, openai_base_url=None)
    address = service.url.removeprefix("http://")
    command = block.replace("127.0.0.1:8000", address).replace(".venv/bin/", "")
    command = re.sub(r"(chat|survive)\.py", rf"\1.py --url {service.ws_url}", command)
    status, out, err = await output("bash", "-c", command)

    assert status == 0, err
    assert "やっほ" in out.decode() or '"content":"や"' in out.decode() or "data: や" in out.decode()
    assert "answers" in out.decode()


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


IN_WORDS = {"WS_CHAT_MODELS": "any", "WS_CHAT_API_KEYS": "none", "WS_CHAT_ALLOWED_ORIGINS": "same host only"}


def test_every_setting_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `((?:WS_CHAT|OPENAI)_\w+)`[^|]*\| ([^|]*)\|", SETTINGS, re.MULTILINE))
    for field in Settings.model_fields.values():
        if field.alias.startswith("WS_CHAT_"):
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
            default = IN_WORDS.get(field.alias, default)
            assert rows.pop(field.alias).strip().strip("`") == default, field.alias
    assert set(rows) == {"OPENAI_API_KEY"}
    assert "`OPENAI_BASE_URL`" in SETTINGS


def test_every_setting_and_metric_that_is_named_is_there():
    settings = {field.alias for field in Settings.model_fields.values()}
    names = "|".join(family.name for family in Metrics().registry.collect())
    for page in (
        README,
        *((ROOT / f"docs/{name}.md").read_text() for name in ("deployment", "operations", "security")),
    ):
        assert set(re.findall(r"\bWS_CHAT_\w+", page)) <= settings
        for name in re.findall(r"\bws_chat_\w+", page):
            assert re.fullmatch(f"({names})(_total|_bucket|_sum|_count)?", name), name


def test_every_frame_is_documented():
    for frame in frames.ServerFrame.__args__:
        assert f'{{"type":"{frame.type}"' in PROTOCOL, frame
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
