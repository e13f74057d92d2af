"""The pages: their links lead somewhere, and every promise of docs/trust.md names the tests that hold it."""

from __future__ import annotations

import re

import pytest
from places import ROOT
from promises import FILE, HOLDING, PROMISES, named_in

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_pages_point_to_what_there_is(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links and [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_every_promise_has_its_test(row):
    tests = named_in(row)
    files = list(FILE.finditer(tests))
    assert files and FILE.sub("", tests).strip(" ,;") == ""  # nothing besides
    for file in files:
        assert file[1] == file[3]
        source = (ROOT / file[2]).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"`(\w+)`", file[4]) if f"def {name}(" not in source] == []


def test_commands_that_draw_the_pages_own_pictures_may_replace_them():
    """A picture that is there is replaced only with --overwrite, and these come with the checkout."""
    commands = [
        command
        for page in ["README.md", *DOCS]
        for command in (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if re.match(r"unclip |python -m inference", command)
    ]
    drawing = [
        one for one in commands if any((ROOT / word).is_file() for word in re.findall(r"\S+\.png", one))
    ]
    assert len(drawing) > 10 and [one for one in drawing if "--overwrite" not in one] == []


def test_what_holds_a_promise_bears_the_mark(request):
    assert len(PROMISES) > 20
    items = request.session.items
    there = [(item.path.relative_to(ROOT).as_posix(), item.originalname, item) for item in items]
    held = [(name, item) for file, name, item in there if (file, name) in HOLDING]
    assert [name for name, item in held if item.get_closest_marker("attack") is None] == []
    whole = len({file for file, _, _ in there}) > 100
    assert not whole or {(file, name) for file, name, _ in there} >= HOLDING
