"""The threat model names tests and settings that there are, with their defaults."""

from __future__ import annotations

import re

import pytest
from support.processes import ROOT

from ws_chat import Settings

PAGE = (ROOT / "docs/security.md").read_text()
TESTS = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))
SOURCES = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
UNITS = {"": 1, " s": 1, " MiB": 1 << 20}
LIMITS = re.findall(r"`(WS_CHAT_\w+)` \((none|[\d,]+)( s| MiB|)[;)]", PAGE)


@pytest.mark.parametrize("name", TESTS)
def test_every_test_of_the_threat_model_is_there(name):
    assert re.search(rf"def {name}\(", SOURCES)


@pytest.mark.parametrize(("name", "number", "unit"), LIMITS)
def test_every_limit_of_the_threat_model_has_that_default(name, number, unit):
    default = getattr(Settings(), name.removeprefix("WS_CHAT_").lower())

    assert default == (None if number == "none" else int(number.replace(",", "")) * UNITS[unit])


def test_the_threat_model_names_them():
    assert len(TESTS) > 40
    assert len(LIMITS) > 10
