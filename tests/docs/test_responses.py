"""docs/responses.md cannot rot, nor what the README shows of it: the programs are run, and the rest is compared."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from support.blocks import claim, claim_one, each
from support.processes import ROOT, output

from ws_chat.server.responses.request import _REFUSED, _SAME, CreateRequest
from ws_chat.server.responses.types import CLIENT_FRAMES

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/responses.md").read_text()
PYTHON = [*claim("docs/responses.md", "python"), *claim("README.md", "python", "responses.stream")]
CODEX = claim_one("docs/responses.md", "toml")


@each(PYTHON)
async def test_python(block, serve):
    service = await serve(openai_api_key=None, openai_base_url=None)
    code = block.text.replace("http://127.0.0.1:8000", service.url).replace('"demo"', '"demo-fast"')
    status, out, err = await output(sys.executable, "-c", code)

    assert (status, err) == (0, b"")
    assert "answers here." in out.decode()


def test_the_configuration_of_codex_names_this_server():
    config = tomllib.loads(CODEX)

    provider = config["model_providers"][config["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == ("http://127.0.0.1:8000/v1", "responses")


def test_every_field_and_frame_is_there():
    named = set(re.findall(r"`([a-z_]+)(?:[.:][^`]*)?`", PAGE))
    fields = {name for name in CreateRequest.__struct_fields__ if name != "type"}
    assert (fields | {*_SAME, *_REFUSED}) - named == set()
    for frame in CLIENT_FRAMES:
        assert f'"type":"{frame.__struct_config__.tag}"' in PAGE
