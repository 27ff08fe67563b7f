"""Starting and finding responses, over either transport. A response is a generation whose request has an `echo`."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import Chat, encode_body
from ws_chat.relay.conversation import echo_of
from ws_chat.server.responses.request import check_outputs
from ws_chat.server.responses.types import RESPONSE_ID_PATTERN, Echo

if TYPE_CHECKING:
    from ws_chat.relay.access import Caller
    from ws_chat.relay.relay import Relay
    from ws_chat.server.responses.request import Request
    from ws_chat.stores.base import Log

_ID: Final = re.compile(RESPONSE_ID_PATTERN)
_decode_echo: Final = msgspec.json.Decoder(Echo).decode
_decode_messages: Final = msgspec.json.Decoder(list[dict[str, Any]]).decode


def new_id() -> str:
    return f"resp_{int(time.time()):08x}{secrets.token_hex(16)}"


async def create(relay: Relay, caller: Caller, response_id: str, request: Request) -> Log:
    """Start a response. Raises ChatError: as `Relay.start`, `previous_response_not_found`, `invalid_request`."""
    echo = request.echo
    previous = echo.previous_response_id
    if previous is not None and not _ID.fullmatch(previous):
        raise _previous_not_found(previous)
    body = encode_body(request.body)

    def check(log: Log | None, before: bytes) -> None:
        if log:
            if not echo_of(log.request):
                raise _previous_not_found(log.start.id)
            if log.terminal is None:
                message = f"The response {log.start.id} still runs. Cancel it, or wait for its end."
                raise ChatError("invalid_request", message, param="previous_response_id")
        if request.has_outputs:
            check_outputs(_decode_messages(before) if before else [], request.body["messages"])

    chat = Chat(
        body,
        request.model,
        response_id if echo.store else None,
        previous,
        instructions=echo.instructions,
        echo=msgspec.json.encode(echo),
        generate=request.generate,
    )
    try:
        return await relay.create(caller, response_id, chat, check)
    except ChatError as error:
        if error.info.param != "previous_id":
            raise
        if error.info.code == "not_found":
            raise _previous_not_found(previous) from None
        raise ChatError.of(msgspec.structs.replace(error.info, param="previous_response_id")) from None


async def get(relay: Relay, caller: Caller, response_id: str) -> tuple[Log, Echo]:
    """Return the log of a stored response, and the fields of its request. Raises ChatError (`not_found`, `overloaded`)."""
    missing = ChatError("not_found", "There is no such response.", param="response_id")
    if not _ID.fullmatch(response_id):
        raise missing
    try:
        log = await relay.get(caller, response_id)
    except ChatError as error:
        raise missing if error.info.code == "not_found" else error from None
    if not (echo := echo_of(log.request)):
        raise missing  # a chat's generation
    return log, _decode_echo(echo)


def _previous_not_found(response_id: str | None) -> ChatError:
    message = f"There is no response {(response_id or '')[:64]!r} to continue from: send the whole conversation."
    return ChatError("previous_response_not_found", message, param="previous_response_id")
