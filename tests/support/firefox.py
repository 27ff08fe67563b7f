"""A real Firefox, driven by WebDriver BiDi, which it speaks itself over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.processes import environment, need
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENTER = "\ue007"  # WebDriver's key codes
PREFERENCES = """
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("toolkit.telemetry.enabled", false);
user_pref("app.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("extensions.getAddons.cache.enabled", false);
user_pref("services.settings.server", "data:,");
"""


class Firefox:
    """A session of WebDriver BiDi."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def command(self, method: str, **params: Any) -> Any:
        """Send a command and return its result; one at a time."""
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]

    async def tab(self, url: str) -> FirefoxTab:
        """Open a page in a new tab."""
        created = await self.command("browsingContext.create", type="tab")
        tab = FirefoxTab(self, created["context"])
        await tab.go(url)
        return tab


class FirefoxTab:
    """A tab that shows the page."""

    def __init__(self, firefox: Firefox, context: str) -> None:
        self._firefox = firefox
        self._context = context

    async def go(self, url: str) -> None:
        await self._firefox.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def reload(self) -> None:
        await self._firefox.command("browsingContext.reload", context=self._context, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, which is a string, a number, a boolean or null."""
        found = await self._firefox.command(
            "script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=True
        )
        assert found["type"] == "success", found
        return found["result"].get("value")

    async def sees(self, expression: str) -> None:
        """Wait until an expression is true, in front: a tab behind another one draws nothing."""
        await self._firefox.command("browsingContext.activate", context=self._context)
        while not await self.evaluate(f"Boolean({expression})"):
            await asyncio.sleep(0.05)

    async def type(self, keys: str) -> None:
        """Press keys in the element that has the focus."""
        await self._firefox.command("browsingContext.activate", context=self._context)
        pressed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": pressed}]
        await self._firefox.command("input.performActions", context=self._context, actions=actions)


@contextlib.asynccontextmanager
async def firefox() -> AsyncIterator[Firefox]:
    """Start Firefox with an empty profile; end it at the end of the block."""
    program = need("firefox-esr")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (Path(profile) / "user.js").write_text(PREFERENCES)
        process = await asyncio.create_subprocess_exec(
            *(program, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"),
            env=environment(HOME=profile, MOZ_HEADLESS="1"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr
        try:
            address = ""
            while not address:
                line = (await process.stderr.readline()).decode(errors="replace")
                assert line, "Firefox ended"
                if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
                    address = found[1]
            reading = asyncio.create_task(process.stderr.read())  # a full pipe would stop it
            async with connect(f"{address}/session", max_size=None, open_timeout=None) as socket:
                session = Firefox(socket)
                await session.command("session.new", capabilities={})
                yield session
            reading.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
