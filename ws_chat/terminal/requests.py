"""What a question is sent with: parameters, images, and the models that there are to choose from."""

from __future__ import annotations

import base64
import json
import mimetypes
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from ws_chat.client.network import Address

IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/webp", "image/gif")
MODELS_TIMEOUT: Final = 5.0
MAX_MODELS_BYTES: Final = 2**20


def parameter(text: str) -> tuple[str, Any]:
    """Return a parameter of `key=value`; the value is JSON, or a text that is none. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise ValueError(f"{text!r} must be KEY=VALUE, such as temperature=0.2")
    if key in ("messages", "model", "id", "type", "stream", "previous_id"):
        raise ValueError(f"{key} is not a parameter; -m sets the model, and the question is the message")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def image(place: str) -> dict[str, Any]:
    """Return an image, of a file or at an https address, as a part of a message. Raises ValueError."""
    if place.startswith(("https://", "http://", "data:image/")):
        return {"type": "image_url", "image_url": {"url": place}}
    kind = mimetypes.guess_type(place)[0]
    if kind not in IMAGE_TYPES:
        raise ValueError(f"{place}: must be a PNG, JPEG, WebP or GIF file, or an address of one")
    try:
        data = Path(place).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: an unknown ~user
        raise ValueError(f"{place} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def fetch_models(url: str, key: str | None) -> list[str]:
    """Return the models that a server lists. Blocks. Raises ValueError with the reason, if it lists none."""
    address = Address(url, key).url
    scheme, host, path, *_ = urlsplit(address)
    scheme = {"ws": "http", "wss": "https"}[scheme]
    place = urlunsplit((scheme, host, path.removesuffix("/ws") + "/models", "", ""))
    request = urllib.request.Request(place, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=MODELS_TIMEOUT) as response:  # noqa: S310  (http or https, see above)
            found = json.loads(response.read(MAX_MODELS_BYTES))["data"]
        return [model["id"] for model in found if isinstance(model["id"], str)]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{place} answered with status {error.code}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} cannot be read: {error}") from None
