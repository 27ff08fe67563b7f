"""The frames as JSON Schema (2020-12), for both documents, made from the structs that decode and encode them."""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec

from ws_chat.protocol.errors import ErrorBody
from ws_chat.protocol.frames import Cancel, ChatRequest, Ping, Resume, ServerFrame
from ws_chat.protocol.types import TokenFrame

REFERENCE: Final = "#/components/schemas/{name}"
CLIENT_FRAMES: Final[tuple[Any, ...]] = (ChatRequest, Cancel, Resume, Ping)
SERVER_FRAMES: Final[tuple[Any, ...]] = get_args(ServerFrame)


def reference(name: str) -> dict[str, str]:
    """Return a reference to one of SCHEMAS."""
    return {"$ref": REFERENCE.format(name=name)}


SCHEMAS: Final = msgspec.json.schema_components(
    (*CLIENT_FRAMES, *SERVER_FRAMES, TokenFrame, ErrorBody), ref_template=REFERENCE
)[1]
"""Of every frame (`ChatRequest`, `TokenFrame`, …), of `Messages` alone, and of an error as the body of a response."""
SCHEMAS["Messages"] = SCHEMAS[ChatRequest.__name__]["properties"]["messages"]
