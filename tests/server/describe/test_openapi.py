"""The OpenAPI description is true: schemathesis asks for all that it promises, and for some things that it forbids."""

from __future__ import annotations

import logging

import pytest
from openapi_spec_validator import OpenAPIV32SpecValidator
from starlette.routing import Route
from support.processes import need, output

from ws_chat.protocol.errors import CODES
from ws_chat.server import describe
from ws_chat.server.describe.__main__ import updated

pytestmark = pytest.mark.anyio

# What a schema cannot say: a position may be beyond the end, and one in the header goes before one in the query. A
# generation that was cancelled is kept all the same, and one without a name is gone with its connection. The input of a
# response is more than objects, and what a response is not asked for is passed over.
CONFIG = """
[cache]
enabled = false

[checks]
use_after_free.enabled = false
ensure_resource_availability.enabled = false

[[operations]]
include-operation-id = "follow"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false

[[operations]]
include-operation-id = "createResponse"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false

[[operations]]
include-operation-id = "responsesSocket"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "retrieveResponse"
checks.negative_data_rejection.enabled = false
"""
# The values at their bounds are tried in any case; 12 random requests for each operation are added. No time limit of
# schemathesis's own may decide on a busy machine: neither the 10 s for a response nor those for generating data.
ARGUMENTS = (
    *("--seed", "1", "--max-examples", "12", "--generation-database", "none", "--no-color"),
    *("--request-timeout", "600", "--suppress-health-check", "all"),
)


@pytest.mark.parametrize("phases", ["examples,coverage,fuzzing", "stateful"])
async def test_the_description_is_true(phases, service, tmp_path, caplog):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = need("schemathesis")
    where = service.url + "/openapi.json"
    command = (program, "--config-file", str(config), "run", where, "--phases", phases, *ARGUMENTS)
    status, out, err = await output(*command)

    printed = out.decode()
    assert status == 0, printed[max(printed.find("= FAILURES ="), 0) :] + err.decode()
    assert "12 selected / 12 total" in printed
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_every_error_is_described_with_its_status():
    document = describe.openapi()
    found = {}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if "$ref" in response:
                    response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
                if "application/json" in response.get("content", {}) and status not in ("200", "426"):
                    codes = response["description"].replace("`", "").split(", ")
                    found.update(dict.fromkeys(codes, status))

    statuses = {code: str(kind.status) for code, kind in CODES.items()} | {"upstream_rejected": "4XX"}
    del statuses["invalid_stream_id"]  # only a WebSocket has lanes
    assert found == statuses


async def test_every_route_is_described(service):
    routes = {route.path for route in service.app.routes if isinstance(route, Route)}
    not_api = {"/", "/asyncapi.json", "/docs", "/openapi.json", "/service-worker.js", "/v1/chat/ws"}

    assert routes - not_api == set(describe.openapi()["paths"])


def test_it_is_valid():
    """Of 3.2: `itemSchema`, which describes the events of a stream, is not in 3.1."""
    document = describe.openapi()
    assert document["openapi"] == "3.2.0"
    assert [error.message for error in OpenAPIV32SpecValidator(document).iter_errors()] == []


@pytest.mark.parametrize("name", ["openapi", "asyncapi"])
def test_the_schemas_are_those_of_the_frames(name):
    assert describe.path(name).read_text() == updated(name), "run: python -m ws_chat.server.describe"
