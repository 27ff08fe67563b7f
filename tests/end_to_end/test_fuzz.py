"""A small part of the fuzz at every test; `make fuzz` for the rest."""

from __future__ import annotations

import pytest
from load.fuzz import fuzz

pytestmark = pytest.mark.anyio


@pytest.mark.usefixtures("path")
async def test_whatever_a_client_sends_is_answered_as_the_contract_says(monkeypatch):
    monkeypatch.setattr("load.fuzz.WORKERS", 4)
    answers = await fuzz(frames=800, seed=1)

    assert answers["frames"] == 800
    tried = {"start", "pong", "nothing", "invalid_json", "invalid_request", "not_found", "id_conflict", "200", "204"}
    assert tried <= answers.keys()
