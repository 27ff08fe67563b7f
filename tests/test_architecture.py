"""The floors of the house: imports go down only, and the pure files know no event loop, no framework, no clock."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import ws_chat

PACKAGE = Path(ws_chat.__file__).parent
FLOORS = [
    {"errors", "settings", "deltas", "event_stream", "observe", "testing.replies", "shapes"},
    {"testing.fake_openai"},
    {"frames", "access"},
    {"generation", "session", "upstreams.base", "stores.base"},
    {
        "conversation",
        "reader",
        "upstreams.answer",
        "upstreams.body",
        "stores.memory",
        "stores.redis_names",
    },
    {"upstreams.connection", "stores.redis_link"},
    {"upstreams.transport", "stores.redis_journal"},
    {"stores.redis_lease", "stores.redis_following"},
    {"stores.redis_shard"},
    {"stores.redis"},
    {"producers", "upstreams.openai", "upstreams.demo", "observers.metrics", "observers.logs", "observers.tracing"},
    {"relay"},
    {"doors.http", "doors.schemas", "doors.outlet", "doors.page", "doors.sse_format"},
    {"doors.connections", "doors.dependency", "doors.openapi", "doors.asyncapi"},
    {"doors.websocket", "doors.sse"},
    {"client.errors", "client.frames", "client.request", "client.patience", "client.thread"},
    {"client.answer", "client.network"},
    {"client.reply", "client.link"},
    {"client.chat"},
    {"client.sync"},
    {"protocols.bounds"},
    {"app", "protocols.http", "protocols.websocket"},
    {"server", "mount"},
    {
        "terminal.commands",
        "terminal.local",
        "terminal.options",
        "terminal.question",
        "terminal.quiet",
        "terminal.stats",
        "terminal.turns",
        "terminal.visible",
        "terminal.waiting",
    },
    {
        "terminal.faults",
        "terminal.keys",
        "terminal.markdown",
        "terminal.remarks",
        "terminal.saving",
        "terminal.teletype",
    },
    {"terminal.growing", "terminal.plain"},
    {"terminal.screen"},
    {"terminal.answering"},
    {"terminal.interactive"},
    {"terminal.main"},
    {"cli", "testing.serving"},
    {"pytest_plugin"},
    {"__main__"},
]
PURE = {
    "errors",
    "deltas",
    "event_stream",
    "frames",
    "generation",
    "session",
    "reader",
    "conversation",
    "upstreams.answer",
}
IMPURE = {
    "asyncio",
    "fastapi",
    "starlette",
    "uvicorn",
    "openai",
    "httpx2",
    "time",
    "datetime",
    "random",
    "secrets",
    "os",
}
FORBIDDEN = {
    "producers": {"fastapi", "starlette", "uvicorn", "openai", "httpx2", "json", "pydantic_core", "redis"},
    "relay": {"fastapi", "starlette", "uvicorn", "openai", "httpx2", "json", "pydantic_core", "redis"},
    "upstreams.openai": {"fastapi", "starlette", "uvicorn"},
    "upstreams.demo": {"fastapi", "starlette", "uvicorn", "openai"},
    "doors.websocket": {"openai", "httpx2", "uvicorn"},
    "doors.sse": {"openai", "httpx2", "uvicorn"},
    "app": {"openai", "httpx2", "uvicorn"},
    "cli": {"fastapi", "starlette", "uvicorn", "openai"},
}


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


@cache
def imports(name: str) -> set[str]:
    """Return the modules that a module imports."""
    tree = ast.parse(MODULES[name].read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_module_has_its_floor():
    assert set(MODULES) == set().union(*FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    floor = next(place for place, floor in enumerate(FLOORS) if name in floor)
    below = set().union(*FLOORS[:floor])
    ours = {module.removeprefix("ws_chat.") for module in imports(name) if module.startswith("ws_chat.")}

    assert ours <= below
    if name.startswith("doors."):
        assert not {module for module in ours if module.startswith("upstreams.") or module == "stores.memory"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_only_what_its_floor_may_know(name):
    known = {module.split(".")[0] for module in imports(name)}

    assert not known & (IMPURE if name in PURE else FORBIDDEN.get(name, set()))


@pytest.mark.parametrize("name", MODULES)
def test_a_room_is_small(name):
    assert len(MODULES[name].read_text().splitlines()) <= 300


def test_the_client_knows_nothing_of_the_server():
    for name in MODULES:
        if name.startswith("client."):
            ours = {module for module in imports(name) if module.startswith("ws_chat.")}
            assert all(
                module.startswith(("ws_chat.client.", "ws_chat.frames", "ws_chat.errors", "ws_chat.shapes"))
                for module in ours
            )


def test_only_the_local_server_of_the_terminal_knows_of_servers():
    for name in MODULES:
        if name.startswith("terminal.") and name != "terminal.local":
            ours = {module for module in imports(name) if module.startswith("ws_chat.")}
            assert all(module.startswith(("ws_chat.terminal.", "ws_chat.client.")) for module in ours)


def test_package_markers_hold_nothing():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent.name in {"client", "testing"}:
            continue  # their front doors
        assert len(ast.parse(path.read_text()).body) == 1, "a docstring and nothing else"
