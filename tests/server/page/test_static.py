"""The files that a page loads."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ws_chat.upstreams import demo

pytestmark = pytest.mark.anyio


async def test_the_browser_client_is_served(service):
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        response = await client.get("/static/ws-chat.js")
        again = await client.get("/static/ws-chat.js", headers={"If-None-Match": response.headers["ETag"]})

    assert response.status_code == 200
    assert response.content == files("ws_chat").joinpath("server/page/static/ws-chat.js").read_bytes()
    assert "javascript" in response.headers["Content-Type"], "a browser runs no module of another type"
    assert again.status_code == 304
    for served in (response, again):
        assert "default-src 'none'" in served.headers["Content-Security-Policy"]
        assert served.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_is_served(serve):
    service = await serve(models=('m"1', "<m2>", "m*"), model="m0", api_keys=("the-key",))
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        response = await client.get("/")
        head = await client.head("/")

    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert (head.status_code, head.content) == (200, b"")
    facts = html.unescape(re.search(r'name="ws-chat" content="([^"]*)"', response.text)[1])
    assert json.loads(facts) == {"models": ["m0", 'm"1', "<m2>"], "needsKey": True, "maxBytes": 2**22}
    assert "the-key" not in response.text
    assert "require-trusted-types-for 'script'" in response.headers["Content-Security-Policy"]
    assert response.headers["Cache-Control"] == "no-cache"


async def test_files_are_compressed_for_those_who_can_read_it(service):
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        for path in ("/", "/docs", "/static/ws-chat.js", "/static/page.css"):
            plain = await client.get(path, headers={"Accept-Encoding": "identity"})
            packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
            assert packed.headers["Content-Encoding"] == "gzip"
            assert "Content-Encoding" not in plain.headers
            assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"])
            assert packed.content == plain.content
            assert {response.headers["Vary"] for response in (plain, packed)} == {"Accept-Encoding"}
            if tag := packed.headers.get("ETag"):
                assert tag != plain.headers["ETag"]
                again = await client.get(path, headers={"If-None-Match": tag, "Accept-Encoding": "gzip"})
                assert (again.status_code, again.content) == (304, b"")


async def test_the_demo_offers_its_models(serve):
    service = await serve(openai_api_key=None, openai_base_url=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        page = (await client.get("/")).text

    assert html.escape(json.dumps(list(demo.MODELS))) in page


def test_vendored_files_are_of_the_versions_that_are_named():
    vendor = files("ws_chat").joinpath("server/page/static/vendor")
    table = vendor.joinpath("README.md").read_text()
    for name, pattern in {
        "marked.js": r"marked v([\d.]+) ",
        "highlight/core.js": r"Highlight\.js v([\d.]+) ",
        "katex/katex.js": r'version:"([\d.]+)"',
    }.items():
        version = re.search(pattern, vendor.joinpath(name).read_text())[1]
        assert f"| {version} |" in next(line for line in table.splitlines() if name in line)
    languages = vendor.joinpath("highlight/languages").iterdir()
    known = files("ws_chat").joinpath("server/page/static/page/code.js").read_text()
    assert all(re.search(rf"\b{language.name.removesuffix('.js')}\b", known) for language in languages)


@pytest.mark.parametrize("path", ["/static", "/static/", "/static/no.js", "/static/../app.py", "/static/%2e%2e/app.py"])
async def test_nothing_else_is(path, service):
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        response = await client.get(path, follow_redirects=True)

    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_there_is_no_socket_among_them(service):
    with pytest.raises(InvalidStatus) as refused:
        await connect(service.url.replace("http", "ws") + "/static/ws-chat.js", open_timeout=None).__aenter__()

    assert refused.value.response.status_code == 404
