"""docs/quick-start.md, followed from its top to its end, as a person would."""

from __future__ import annotations

import json

import pytest
from support.blocks import claim, output_until
from support.processes import need, output, program

pytestmark = pytest.mark.anyio

BLOCKS = claim("docs/quick-start.md", "sh")
SERVERS = [block.text for block in BLOCKS if "ws-chat serve" in block.text]
ASKED = [block.text for block in BLOCKS if "curl" in block.text]


def typed(out: bytes) -> str:
    return "".join(line.removeprefix("data: ") for line in out.decode().splitlines() if line.startswith("data: "))


async def shell(command: str, port: int) -> bytes:
    status, out, err = await output("bash", "-ec", command.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    assert status == 0, err.decode()
    return out


def served(command: str, **variables: str):
    script = command.strip().replace(".venv/bin/", "").replace("ws-chat", "exec env ws-chat")
    if "=" in script.split()[0]:
        script = "export " + script.replace(" exec ", "; exec ")
    return program("bash", "-c", f"{script} --port 0", **variables)


def test_every_block_is_followed():
    assert (len(SERVERS), len(ASKED)) == (3, 6)
    assert len(BLOCKS) == 9


PLAIN, WHOLE, BROKEN, AGAIN, ON, WITH_KEY = ASKED


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Be in a folder without any settings."""
    need("curl")
    monkeypatch.chdir(tmp_path)


async def test_the_demo():
    async with served(SERVERS[0]) as server:
        port = await server.port()
        assert "“Hello?”" in typed(await shell(PLAIN, port))
        frames = [json.loads(line[6:]) for line in (await shell(WHOLE, port)).splitlines() if line.startswith(b"data:")]
        assert [frames[0]["type"], frames[-1]["type"]] == ["start", "done"]
        # The page leaves this one after a second.
        assert " -m 1 " in BROKEN
        await output_until(b"id: 5-", BROKEN.replace("-m 1 ", "").replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
        both = (await shell(AGAIN, port)).split(b"[DONE]")
        assert "“Tell me a story.”" in typed(both[0])
        assert min(int(line[4:].partition(b"-")[0]) for line in both[1].splitlines() if line.startswith(b"id: ")) > 5
        assert "“And then?”" in typed(await shell(ON, port))


async def test_a_real_model(fake):
    """The page names Ollama's own address; here the fake upstream has another."""
    async with served(SERVERS[1].replace("http://127.0.0.1:11434/v1", fake.base_url)) as server:
        assert typed(await shell(PLAIN, await server.port())) == "Hello[DONE]"
    assert fake.requests[0].body["model"] == "llama3.2"


async def test_for_others():
    assert "--host 0.0.0.0" in SERVERS[2]
    async with served(SERVERS[2].replace("--host 0.0.0.0", "")) as server:
        port = await server.port()
        assert "“Hello?”" in typed(await shell(WITH_KEY, port))
        assert b'"unauthorized"' in await shell(PLAIN, port)
