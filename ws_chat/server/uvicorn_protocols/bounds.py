"""Limits that need the kernel: how long a peer may read nothing, the buffer for a slow one, the open files.

Neither uvicorn nor asyncio has a write timeout. A closed TCP window is invisible to them: `transport.close()` waits for
ever to write pending bytes, and only `abort()` or the kernel ends that. Tests: tests/server/uvicorn_protocols/test_holding.py
(test_a_peer_that_reads_nothing_is_dropped_and_affects_no_other, test_a_peer_that_reads_slowly_is_not_dropped,
test_memory_for_a_peer_that_reads_nothing_is_bounded).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import math
import socket
import termios
from typing import TYPE_CHECKING, Any, Final

from ws_chat.server.chat.sender import WRITE_TIMEOUT
from ws_chat.upstreams.http.transport import RESERVED_FILES, files_left

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("ws_chat.server")

SEND_BUFFER: Final = 128 * 1024
"""Bytes that the kernel stores for a slow peer (it counts twice as many)."""


LOG_INTERVAL: Final = 60.0
"""Seconds between two log lines about missing file descriptors."""


def bound(transport: asyncio.BaseTransport, app_state: dict[str, Any]) -> None:
    """Let the kernel drop a peer that reads nothing for the write timeout, and store SEND_BUFFER bytes for it.

    The user timeout (RFC 5482) is the time for which sent data may stay unacknowledged, or a window closed.
    """
    seconds = app_state.get(WRITE_TIMEOUT)
    if seconds and is_bounded(transport):
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def is_bounded(transport: asyncio.BaseTransport) -> bool:
    """Whether the kernel can enforce the limits: with TCP, on Linux."""
    peer = transport.get_extra_info("socket")
    return peer is not None and peer.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT")


def pending(transport: asyncio.Transport) -> int:
    """Return the bytes that a peer has not acknowledged, or those that the transport has not written yet."""
    waiting = transport.get_write_buffer_size()
    if waiting == 0 and (peer := transport.get_extra_info("socket")):
        sent = array.array("i", [0])
        with contextlib.suppress(OSError):  # it is closed
            fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, sent)
        waiting = sent[0]
    return waiting


class LastFiles:
    """The connections that were accepted with one of the last RESERVED_FILES file descriptors, the oldest first.

    They are for health checks: anything else is refused on them, so they are soon closed. In a process without free
    descriptors libuv closes every new connection unanswered, and asyncio stops accepting.
    """

    def __init__(self) -> None:
        self._connections: dict[asyncio.BaseTransport, None] = {}
        self._logged = -math.inf

    def has(self, transport: asyncio.Transport, now: float) -> bool:
        """Return whether a new connection is one of them. If they are too many, the oldest is closed."""
        peer = transport.get_extra_info("socket")
        if files_left(peer.fileno()) >= RESERVED_FILES:
            return False
        if now > self._logged + LOG_INTERVAL:
            self._logged = now
            logger.error(
                "Nearly all file descriptors of this process are in use: connections are refused. "
                "Raise the limit (ulimit -n, LimitNOFILE), or lower WS_CHAT_MAX_CONNECTIONS."
            )
        self._connections[transport] = None
        if len(self._connections) > RESERVED_FILES // 4:
            oldest = next(iter(self._connections))
            self.discard(oldest)
            oldest.abort()  # type: ignore[attr-defined]
        return True

    def discard(self, transport: asyncio.BaseTransport) -> None:
        self._connections.pop(transport, None)
