"""The files of the web page, with the headers that keep it from doing what it was not made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.responses import Response

# CSP level 3, where 'self' in connect-src covers the WebSockets of the same host.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page(StaticFiles):
    """Static files, for nobody's frame and with nobody else's scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file's response."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response
