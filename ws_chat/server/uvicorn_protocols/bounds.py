"""What the kernel does for us: it drops a peer that takes nothing, and keeps no more for a slow one than it should."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import termios
from typing import TYPE_CHECKING, Any, Final

from ws_chat.server.chat.sender import WRITE_TIMEOUT

if TYPE_CHECKING:
    import asyncio

SEND_BUFFER: Final = 128 * 1024
"""Bytes that the kernel keeps for a peer that is slow (twice that, by its own counting)."""


def bound(transport: asyncio.BaseTransport, app_state: dict[str, Any]) -> None:
    """Let the kernel drop a peer that takes nothing for the write timeout, and keep no more than SEND_BUFFER for it.

    The user timeout (RFC 5482) is the time that sent data may stay unacknowledged, or a window closed.
    """
    seconds = app_state.get(WRITE_TIMEOUT)
    if seconds and is_bounded(transport):
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def is_bounded(transport: asyncio.BaseTransport) -> bool:
    """Whether the kernel does so: for TCP, on Linux."""
    peer = transport.get_extra_info("socket")
    return peer is not None and peer.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT")


def pending(transport: asyncio.Transport) -> int:
    """Return the bytes that a peer has not taken."""
    waiting = transport.get_write_buffer_size()
    if waiting == 0 and (peer := transport.get_extra_info("socket")):
        sent = array.array("i", [0])
        with contextlib.suppress(OSError):  # it is gone
            fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, sent)
        waiting = sent[0]
    return waiting
