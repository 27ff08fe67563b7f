from __future__ import annotations

import json
import re
from pathlib import Path

from msgspec.json import encode

from ws_chat.protocol.errors import CODES, ChatError

ROWS = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \| (yes|no) \|", re.MULTILINE)


def test_the_table_is_the_one_that_is_documented():
    page = Path(__file__).parents[2].joinpath("docs/protocol.md").read_text()
    documented = {}
    for names, status, retryable in ROWS.findall(page):
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = (status.strip(), retryable == "yes")

    assert documented == {
        code: ("the upstream's 4xx" if code == "upstream_rejected" else str(kind.status), kind.retryable)
        for code, kind in CODES.items()
    }


def test_the_type_follows_the_code():
    for code, kind in CODES.items():
        expected = {
            401: "authentication_error",
            403: "permission_error",
            429: "rate_limit_error",
        }.get(kind.status)
        if expected is None:
            if code.startswith("upstream_") or code == "generation_lost":
                expected = "upstream_error"
            else:
                expected = "invalid_request_error" if kind.status < 500 else "server_error"
        assert kind.type == expected, code


def test_an_error_is_its_object():
    assert json.loads(encode(ChatError("upstream_rejected", "no", status=418, retry_after=1.5).info)) == {
        "type": "upstream_error",
        "code": "upstream_rejected",
        "message": "no",
        "param": None,
        "status": 418,
        "retryable": False,
        "retry_after": 1.5,
    }
