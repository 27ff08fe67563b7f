"""Text of others, made safe for a terminal: a control character is shown, never carried out.

A terminal takes commands in its text (ECMA-48: ESC, and the C1 characters), which could rename its window, fill the
clipboard or rewrite what stands above.
"""

from __future__ import annotations

from typing import Final

_PICTURES: Final = 0x2400  # Unicode has a picture of each of the characters 0 to 31, and of 127
_KEPT: Final = "\t\n"
_SHOWN: Final = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if chr(code) not in _KEPT},
    ord("\r"): None,  # a line break of CRLF, or one that would write over its line
    0x7F: "\u2421",
    **{code: f"<{code:02x}>" for code in range(0x80, 0xA0)},
    # These turn the order around in which a text is shown.
    **{code: f"<{code:04x}>" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    **dict.fromkeys(range(55296, 57344), "�"),  # halves of characters, which cannot be encoded
}


def visible(text: str) -> str:
    """Return a text with its control characters shown. Line breaks and tabs stay, a carriage return goes."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)
