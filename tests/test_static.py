"""The files that a page loads."""

from __future__ import annotations

from importlib.resources import files

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio


async def test_the_browser_client_is_served(service):
    async with httpx.AsyncClient(base_url=service.url) as client:
        response = await client.get("/static/ws-chat.js")
        again = await client.get("/static/ws-chat.js", headers={"If-None-Match": response.headers["ETag"]})

    assert response.status_code == 200
    assert response.content == files("ws_chat").joinpath("static/ws-chat.js").read_bytes()
    assert "javascript" in response.headers["Content-Type"], "a browser runs no module of another type"
    assert again.status_code == 304
    for served in (response, again):
        assert "default-src 'none'" in served.headers["Content-Security-Policy"]
        assert served.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/static", "/static/", "/static/no.js", "/static/../app.py", "/static/%2e%2e/app.py"])
async def test_nothing_else_is(path, service):
    async with httpx.AsyncClient(base_url=service.url) as client:
        response = await client.get(path, follow_redirects=True)

    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_there_is_no_socket_among_them(service):
    with pytest.raises(InvalidStatus) as refused:
        await connect(service.url.replace("http", "ws") + "/static/ws-chat.js").__aenter__()

    assert refused.value.response.status_code == 404
