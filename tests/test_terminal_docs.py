"""docs/terminal.md cannot rot: its commands are run, and what there is it names."""

from __future__ import annotations

import json
import re

import pytest
from processes import ROOT, output
from terminals import terminal

from ws_chat.terminal import faults
from ws_chat.terminal.commands import COMMANDS
from ws_chat.terminal.options import read_options

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/terminal.md").read_text()
INTERACTIVE, PIPES = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", PIPES.splitlines())
async def test_the_commands_answer(command, service, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, err = await output("bash", "-c", command, WS_CHAT_URL=service.url)

    assert (status, err) == (0, b"")
    if "--json" in command:
        assert json.loads(out)["type"] == "start"
    else:
        assert out == b"Hello\n"


async def test_the_chat_begins(tmp_path):
    async with terminal(*INTERACTIVE.split(), XDG_STATE_HOME=str(tmp_path)) as shown:
        await shown.prompt(1)


def test_every_command_option_and_status_is_documented():
    for command in COMMANDS:
        assert f"`/{command.name}" in PAGE
    for option, variable in re.findall(r"^\| `--(\w+)` \| `(WS_CHAT_\w+)` \|", PAGE, re.MULTILINE):
        given = "http://there" if option == "url" else "given"
        assert getattr(read_options([f"--{option}={given}"], {}), option) == given
        assert getattr(read_options([], {variable: given}), option) == given
        assert getattr(read_options([f"--{option}={given}"], {variable: "http://elsewhere"}), option) == given
    for status in (faults.FAILED, faults.WRONG, faults.UNREACHABLE, faults.INTERRUPTED, faults.READER_GONE):
        assert re.search(rf"^\| (\d+, )*{status}\b.* \|", PAGE, re.MULTILINE)


def test_an_option_that_is_not_given_is_the_documented_default():
    options = read_options([], {})
    assert f"`{options.url}`" in PAGE
    assert (options.key, options.model, options.system) == (None, None, None)
