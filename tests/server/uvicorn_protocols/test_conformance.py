"""RFC 6455, by the cases of the Autobahn test suite: what uvicorn's own protocol class does right, ours does too.

Left out are the cases that measure speed and those of compression, which we do not offer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import need, output
from support.service import FALLBACK, running

from ws_chat import Settings
from ws_chat.server.chat.sender import direct_writer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CASES = 247
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
# A close amid a fragmented message is answered with 1002, by the library that both classes stand on.
KNOWN = {"7.1.5"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send every message back: text by the direct writer, where there is one."""
    await receive()
    await send({"type": "websocket.accept"})
    writer = direct_writer(scope, receive, send)
    if writer:
        writer.encode = str.encode
    while (message := await receive())["type"] == "websocket.receive":
        if writer and "text" in message and writer.is_writable():
            writer.write_direct(message["text"])
        else:
            await send({**message, "type": "websocket.send"})


async def failures(folder: Path, **config: Any) -> dict[str, Any]:
    """Return what is reported of each case that fails when the echo is served with this configuration."""
    async with running(echo, Settings(), lifespan="off", **config) as service:
        address = service.url.removeprefix("http://") + "/echo"
        program = need("kosoku")
        await output(program, "-p", "8", "-o", str(folder), "-x", "9.*", "-x", "12.*", "-x", "13.*", address)
    (cases,) = json.loads((folder / "index.json").read_text()).values()
    assert len(cases) == CASES
    return {name: case for name, case in cases.items() if not {case["behavior"], case["behaviorClose"]} <= PASSED}


async def test_no_case_fails_that_passes_with_uvicorn_itself(tmp_path):
    uvicorns = await failures(tmp_path / "uvicorn", **FALLBACK)
    ours = await failures(tmp_path / "ours")

    assert set(uvicorns) <= KNOWN
    assert set(ours) <= set(uvicorns), ours
