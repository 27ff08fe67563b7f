"""docs/embedding.md cannot rot: its applications are served, its tests pass."""

from __future__ import annotations

import sys

import httpx
import pytest
from support.blocks import claim, claim_one
from support.processes import output

from ws_chat.client import AuthenticationError, connect, connect_sync
from ws_chat.testing import serving

PAGE = "docs/embedding.md"
TWO_LINES = claim_one(PAGE, "python", "app = FastAPI()\nmount(")
WHO_ASKS = claim_one(PAGE, "python", "def current_user")
UPSTREAM = claim_one(PAGE, "python", "class Parrot")
TESTS = claim(PAGE, "python", "def test_")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Return what serves the application of a block, with no setting of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WS_CHAT_API_KEYS"):
        monkeypatch.delenv(name, raising=False)

    def serve(code):
        # A module's own names, in which FastAPI looks for types.
        names = {"__name__": "main"}
        exec(code, names)
        return serving(names["app"])

    return serve


def test_two_lines(served):
    with served(TWO_LINES) as url, connect_sync(f"{url}/chat/v1/chat/ws") as chat:
        assert "“hi”" in chat.ask("hi", model="demo-fast").end().text


@pytest.mark.anyio
async def test_a_request_is_authenticated(served):
    with served(WHO_ASKS) as url:
        async with connect(f"{url}/chat/v1/chat/ws", api_key="a-long-random-key") as chat:
            assert "“hi”" in (await chat.ask("hi", model="demo-fast")).text
        with pytest.raises(AuthenticationError, match="not known"):
            async with connect(f"{url}/chat/v1/chat/ws", api_key="another"):
                pass


def test_an_upstream_of_ones_own(served):
    with served(UPSTREAM) as url:
        asked = [{"role": "user", "content": "pretty bird"}]
        answered = httpx.post(f"{url}/v1/chat/stream", json=asked, timeout=None)

    assert answered.text == "data: pretty \n\ndata: bird \n\nevent: done\ndata: [DONE]\n\n"
    _, _, rest = UPSTREAM.partition("class Parrot")
    body = rest.partition("\napp = ")[0].strip()
    assert len([line for line in body.splitlines() if line]) <= 11, "an upstream is ten lines"


@pytest.mark.anyio
async def test_tests_of_ones_own(tmp_path):
    for block in TESTS:
        (tmp_path / f"test_line_{block.line}.py").write_text(block.text)
    plugins = ("-p", "no:cacheprovider", "-p", "no:schemathesis")
    command = (sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, "--rootdir", str(tmp_path), str(tmp_path))
    status, out, _ = await output(*command)

    assert status == 0, out.decode()
    assert b"%d passed" % len(TESTS) in out
