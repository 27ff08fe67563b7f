"""A Python client for a ws_chat server. Each answer arrives complete and once, whatever the network does.

    async with connect("ws://127.0.0.1:8000") as chat:
        async for text in chat.stream("Why is the sky blue?"):
            print(text, end="", flush=True)

`connect_sync` is the same without async.
"""

from __future__ import annotations

from ws_chat.client.chat import Chat, connect
from ws_chat.client.errors import (
    AuthenticationError,
    ClientError,
    ConnectionLostError,
    GenerationGoneError,
    HistoryGoneError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ReplyError,
    ServerError,
    UntrustedServerError,
    UpstreamError,
)
from ws_chat.client.reply import Frame, Message, Reply, Status
from ws_chat.client.sync import SyncChat, SyncReply, connect_sync
from ws_chat.protocol.types import Function, Timing, ToolCall, Usage

__all__ = [
    "AuthenticationError",
    "Chat",
    "ClientError",
    "ConnectionLostError",
    "Frame",
    "Function",
    "GenerationGoneError",
    "HistoryGoneError",
    "InvalidRequestError",
    "Message",
    "NotFoundError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "Reply",
    "ReplyError",
    "ServerError",
    "Status",
    "SyncChat",
    "SyncReply",
    "Timing",
    "ToolCall",
    "UntrustedServerError",
    "UpstreamError",
    "Usage",
    "connect",
    "connect_sync",
]
