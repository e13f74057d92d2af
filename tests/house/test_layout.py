"""The tests mirror the rooms: each lies in a room, has its own name, imports no other and is short."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from places import ROOT, TESTS

MOST_LINES = 310  # of a file, as of the library's
FILES = sorted(TESTS.rglob("test_*.py"))
MODULES = [path.stem for path in TESTS.rglob("*.py") if path.name not in ("__init__.py", "conftest.py")]


def is_room(folder: Path) -> bool:
    return any((ROOT / top / folder / "__init__.py").is_file() for top in ("unclip", "."))


def test_every_test_lies_in_a_room():
    folders = {path.name: path.parent.relative_to(TESTS) for path in FILES}
    assert {
        name: str(folder)
        for name, folder in folders.items()
        if not (is_room(folder) or folder == Path("house"))
    } == {}


def test_every_module_has_a_name_of_its_own():
    assert [name for name, count in Counter(MODULES).items() if count > 1] == []


def test_files_stay_small():
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}


def imported(path: Path) -> set[str]:
    """The names in a file's import statements, and their parts."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {*(node.module or ".").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
    return names


def test_no_test_imports_another():
    tests = {path.stem for path in FILES} | {"conftest", "tests", "."}
    assert {path.stem: both for path in FILES if (both := imported(path) & tests)} == {}
