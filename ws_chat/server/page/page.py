"""The web page and its files, with the headers that keep it from doing what it was not made for."""

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

# CSP level 3, where 'self' in connect-src covers the WebSockets of the same host. No script can turn a text into HTML:
# a model's answer is nobody's markup (Trusted Types).
HEADERS: Final = {
    "Cache-Control": "no-cache",  # the files of one version only: a browser asks whether they are still the same
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FACTS: Final = "{facts}"


class Page(StaticFiles):
    """Static files, for nobody's frame and with nobody else's scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file's response."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


class FrontPage:
    """The page at `/`, which loads everything else by relative URLs, so that it may stand under any prefix.

    It is told what a user would have to guess: the models, the first being the default, and whether a key is needed.
    """

    def __init__(self, models: Sequence[str], *, needs_key: bool) -> None:
        facts = html.escape(json.dumps({"models": list(models), "needsKey": needs_key}))
        source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        self._html = source.replace(FACTS, facts)

    async def answer(self, _: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self._html, headers=HEADERS)
