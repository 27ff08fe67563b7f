"""The web pages and their files, with security headers, compressed."""

from __future__ import annotations

import gzip
import html
import json
import mimetypes
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import Scope

    from ws_chat.relay.access import Hosts

# CSP level 3, where 'self' in connect-src includes WebSockets to the same host. Trusted Types: no script can turn text,
# such as a model's answer, into HTML; the only policy lets the addresses of the page's own workers through.
HEADERS: Final = {
    "Cache-Control": "no-cache",  # revalidated, so that files of two versions never mix
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types scripts",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FACTS: Final = "{facts}"
HERE: Final = Path(__file__).parent
COMPRESSIBLE: Final = {".js", ".css", ".svg", ".webmanifest"}

mimetypes.add_type("application/manifest+json", ".webmanifest")


class Page(StaticFiles):
    """Serves the static files."""

    def __init__(self) -> None:
        super().__init__(directory=HERE / "static")

    async def get_response(self, path: str, scope: Scope) -> Response:
        full_path, stat = self.lookup_path(path)
        if stat and Path(full_path).suffix in COMPRESSIBLE:  # once, and not in the event loop
            await to_thread.run_sync(_compressed_file, full_path, stat.st_mtime_ns)
        return await super().get_response(path, scope)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        asked = Headers(scope=scope)
        response: Response = FileResponse(full_path, status_code=status_code, stat_result=stat_result)
        if Path(full_path).suffix in COMPRESSIBLE and _takes_gzip(asked):
            body = _compressed_file(str(full_path), stat_result.st_mtime_ns)
            tag = response.headers["ETag"].rstrip('"') + '-gzip"'
            headers = {"ETag": tag, "Content-Encoding": "gzip"}
            response = Response(body, status_code, headers, media_type=response.media_type)
        response.headers["Vary"] = "Accept-Encoding"
        if self.is_not_modified(response.headers, asked):
            response = NotModifiedResponse(response.headers)
        response.headers.update(HEADERS)
        return response


class FrontPage:
    """Serves the page at `/`. All of its URLs are relative, so that it works below any prefix.

    The page gets the models to offer, the default first, whether it needs a key, and the size of the largest frame. A
    browser that requests it at a host that is not allowed gets the error instead: none of the page's WebSockets would be
    accepted, and browsers hide why.
    """

    def __init__(self, models: Sequence[str], hosts: Hosts, *, needs_key: bool, max_bytes: int) -> None:
        self._hosts = hosts
        facts = html.escape(json.dumps({"models": list(models), "needsKey": needs_key, "maxBytes": max_bytes}))
        self._html = (HERE / "page.html").read_text(encoding="utf-8").replace(FACTS, facts).encode()

    async def answer(self, request: Request) -> Response:
        """Return the page. Raises ChatError (`host_not_allowed`)."""
        if "origin" in request.headers or "text/html" in request.headers.get("accept", ""):
            self._hosts.check(request.headers.get("host"))
        return _html_response(request, self._html)


async def docs(request: Request) -> Response:
    """Return the API's documentation."""
    return _html_response(request, _read("docs.html"))


async def service_worker(_: Request) -> Response:
    """Return the service worker, beside the page: it may not control what is above its own path."""
    return FileResponse(HERE / "static" / "service-worker.js", headers=HEADERS)


def _html_response(request: Request, body: bytes) -> Response:
    headers = {**HEADERS, "Vary": "Accept-Encoding"}
    if _takes_gzip(request.headers):
        return HTMLResponse(_compressed(body), headers={**headers, "Content-Encoding": "gzip"})
    return HTMLResponse(body, headers=headers)


def _takes_gzip(headers: Any) -> bool:
    return "gzip" in headers.get("accept-encoding", "")


@cache
def _read(name: str) -> bytes:
    return (HERE / name).read_bytes()


@cache
def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


@lru_cache(maxsize=256)
def _compressed_file(path: str, _: int) -> bytes:
    """Return a file compressed; the second argument is its time of modification."""
    return gzip.compress(Path(path).read_bytes(), mtime=0)
