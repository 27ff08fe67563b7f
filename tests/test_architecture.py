"""The floors of the house: imports go down only, and what is pure knows no event loop, no framework and no clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ws_chat

PACKAGE = Path(ws_chat.__file__).parent
FLOORS = {
    "protocol": 1,
    "client": 2,
    "stores": 2,
    "upstreams": 2,
    "relay": 3,
    "server": 4,
    "terminal": 5,
    "testing": 5,
    "": 6,  # the modules at the top: the public API, the command line
}
BESIDE = {
    ("stores", "client"),
    ("upstreams", "client"),
    ("stores", "upstreams"),
    ("terminal", "testing"),
}
"""Folders on one floor that must not know each other, either way."""
PURE = (
    "protocol/",
    "relay/generation.py",
    "relay/reader.py",
    "relay/session.py",
    "relay/conversation.py",
    "upstreams/completion.py",
    "server/responses/types.py",
    "server/responses/events.py",
    "server/responses/request.py",
    "server/responses/reader.py",
)
IMPURE = {
    "asyncio",
    "datetime",
    "fastapi",
    "httpx2",
    "openai",
    "os",
    "random",
    "secrets",
    "starlette",
    "time",
    "uvicorn",
}
UNKNOWN = {
    "client/": {"fastapi", "httpx2", "openai", "starlette", "uvicorn"},
    "relay/": {"fastapi", "httpx2", "openai", "redis", "starlette", "uvicorn"},
    "stores/": {"fastapi", "httpx2", "openai", "starlette", "uvicorn"},
    "upstreams/": {"fastapi", "redis", "starlette", "uvicorn"},
    "server/chat/": {"httpx2", "openai", "uvicorn"},
    "server/responses/": {"httpx2", "openai", "uvicorn"},
    "server/app.py": {"httpx2", "openai", "redis", "uvicorn"},
    "__main__.py": {"fastapi", "openai", "starlette", "uvicorn"},
}
"""What a folder or file must not import."""
LONGEST = 400
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports(file: str) -> set[str]:
    """Return the modules that a file imports, those inside of functions and for types included."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def folder(file: str) -> str:
    return file.partition("/")[0] if "/" in file else ""


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_only(file):
    own = folder(file)
    for name in imports(file):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "ws_chat" and other in FLOORS and other and other != own:
            assert FLOORS[other] <= FLOORS[own], name
            assert not {(own, other), (other, own)} & BESIDE, name


@pytest.mark.parametrize("file", FILES)
def test_a_file_knows_only_what_its_floor_may_know(file):
    known = {name.partition(".")[0] for name in imports(file)}

    if file.startswith(PURE):
        assert not known & IMPURE
    for place, unknown in UNKNOWN.items():
        if file.startswith(place):
            assert not known & unknown


@pytest.mark.parametrize("file", FILES)
def test_a_file_can_be_read_in_one_go(file):
    assert len((PACKAGE / file).read_text().splitlines()) <= LONGEST


def test_the_transports_reach_upstreams_and_stores_through_the_relay_only():
    for file in FILES:
        if file.startswith(("server/chat/", "server/responses/")):
            assert not {
                name for name in imports(file) if name.startswith(("ws_chat.upstreams", "ws_chat.stores.memory"))
            }


def test_the_terminal_starts_a_server_in_one_place():
    users = [
        file
        for file in FILES
        if file.startswith("terminal/") and any(name.startswith("ws_chat.server") for name in imports(file))
    ]
    assert len(users) <= 1, users


def test_every_folder_has_its_floor():
    assert {folder(file) for file in FILES} == set(FLOORS)
