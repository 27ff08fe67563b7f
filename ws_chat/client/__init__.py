"""Talk to a ws_chat server from Python. An answer arrives whole, once, whatever the network does.

    async with connect("ws://127.0.0.1:8000") as chat:
        async for text in chat.stream("Why is the sky blue?"):
            print(text, end="", flush=True)

`connect_sync` is the same without async.
"""

from __future__ import annotations

from ws_chat.client.chat import Chat, connect
from ws_chat.client.errors import (
    AuthenticationError,
    ConnectionLostError,
    HistoryGoneError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ReplyError,
    ServerError,
    UpstreamError,
)
from ws_chat.client.reply import Reply
from ws_chat.client.sync import SyncChat, SyncReply, connect_sync

__all__ = [
    "AuthenticationError",
    "Chat",
    "ConnectionLostError",
    "HistoryGoneError",
    "InvalidRequestError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "Reply",
    "ReplyError",
    "ServerError",
    "SyncChat",
    "SyncReply",
    "UpstreamError",
    "connect",
    "connect_sync",
]
