"""The web page and its files, with security headers."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from ws_chat.relay.access import Hosts

# CSP level 3, where 'self' in connect-src includes WebSockets to the same host. Trusted Types: no script can turn text,
# such as a model's answer, into HTML; the only policy lets the address of the page's own worker through.
HEADERS: Final = {
    "Cache-Control": "no-cache",  # revalidated, so that files of two versions never mix
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types worker",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FACTS: Final = "{facts}"


class Page(StaticFiles):
    """Serves static files with HEADERS."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


async def docs(_: Request) -> Response:
    """Return the API's documentation."""
    return HTMLResponse(Path(__file__).with_name("docs.html").read_text(encoding="utf-8"), headers=HEADERS)


class FrontPage:
    """Serves the page at `/`. All of its URLs are relative, so that it works below any prefix.

    The page gets the models to offer, the default first, and whether it needs a key. A browser that requests it at a host
    that is not allowed gets the error instead: none of the page's WebSockets would be accepted, and browsers hide why.
    """

    def __init__(self, models: Sequence[str], hosts: Hosts, *, needs_key: bool) -> None:
        self._hosts = hosts
        facts = html.escape(json.dumps({"models": list(models), "needsKey": needs_key}))
        source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        self._html = source.replace(FACTS, facts)

    async def answer(self, request: Request) -> Response:
        """Return the page. Raises ChatError (`host_not_allowed`)."""
        if "origin" in request.headers or "text/html" in request.headers.get("accept", ""):
            self._hosts.check(request.headers.get("host"))
        return HTMLResponse(self._html, headers=HEADERS)
