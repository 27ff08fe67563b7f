"""docs/architecture.md and the invariants in the code name only what is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from support.blocks import claim_one
from support.processes import ROOT

PACKAGE = ROOT / "ws_chat"
PAGE = (ROOT / "docs/architecture.md").read_text()
PICTURE = claim_one("docs/architecture.md", "text", "THE PATH OF A TOKEN")
TREE = claim_one("docs/architecture.md", "text", "ws_chat/\n")
INVARIANTS = [
    *sorted((PACKAGE / "server/uvicorn_protocols").glob("[a-z]*.py")),
    *sorted((PACKAGE / "upstreams/http").glob("[a-z]*.py")),
]


@cache
def classes() -> dict[str, set[str]]:
    """Return the names of all classes of the package, with those of their methods and attributes."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                members = found.setdefault(node.name, set())
                members |= {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
                members |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    return found


def paths_of_the_tree() -> list[str]:
    """Return the files and folders that the tree names, those in the remarks included."""
    paths, parents = [], {0: ""}
    for line in filter(None, TREE.splitlines()[1:]):
        name, _, remark = line.strip().partition(" ")
        depth = len(line) - len(line.lstrip())
        path = parents[depth - 2] + name
        parents[depth] = path
        paths += [
            path,
            *(path + other for other in re.findall(r"\b[\w.]+\.(?:py|json)\b", remark) if path.endswith("/")),
        ]
    return paths


def test_the_files_and_folders_of_the_tree_are_there():
    for path in paths_of_the_tree():
        assert (PACKAGE / path).exists(), path
        assert (PACKAGE / path).is_dir() == path.endswith("/"), path


def test_no_folder_is_missing_in_the_tree():
    folders = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("*.py")} - {"./"}
    assert folders <= set(paths_of_the_tree())


def test_the_files_and_folders_of_the_text_are_there():
    named = re.findall(r"`([\w-]+(?:/[\w.-]+)*(?:/|\.(?:py|js|md)))`", PAGE)
    named += re.findall(r"^ (\w+/\S*)\s", PICTURE, re.MULTILINE)
    assert len(named) > 20
    for path in named:
        assert (PACKAGE / path).exists() or (ROOT / path).exists(), path


def test_the_files_of_the_picture_are_in_its_folders():
    files = re.findall(r"(\w+/[\w/]*)\s+((?:\w+\.py(?:, )?)+)", PICTURE)
    assert files
    for folder, names in files:
        for name in names.split(", "):
            assert (PACKAGE / folder / name).exists(), (folder, name)


def test_the_classes_and_methods_of_the_page_are_there():
    named = re.findall(r"\b([A-Z][a-z]\w+)\.([a-z]\w+)\b", PAGE)
    assert len(named) > 10
    for name, member in named:
        assert member in classes().get(name, ()), f"{name}.{member}"
    for name in re.findall(r"`([A-Z][a-z]\w+)`", PAGE):
        assert name in classes(), name


@pytest.mark.parametrize("path", INVARIANTS, ids=lambda path: path.name)
def test_the_tests_that_hold_an_invariant_are_there(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    named = re.findall(r"\b(test_\w+)(?!\w*\.py)\b", docstring)
    modules = re.findall(r"\btests/([\w/]*test_\w+)\.py", docstring)
    tests = "".join((ROOT / f"tests/{module}.py").read_text() for module in modules)
    assert modules, "names no test module"
    for name in named:
        assert any(module.endswith(name) for module in modules) or f"def {name}(" in tests, name
