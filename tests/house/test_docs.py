"""The pages: their links lead somewhere, and every promise of docs/trust.md names the tests that hold it."""

from __future__ import annotations

import re

import pytest
from places import ROOT

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PROMISES = [
    line
    for line in (ROOT / "docs" / "trust.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and line not in ("| promise | test |", "|---|---|")
]
FILE = re.compile(r"\[(\w+)\]\(\.\./(tests/[\w/]+/(\w+)\.py)\)((?:,? `\w+`)+)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_pages_point_to_what_there_is(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links and [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_every_promise_has_its_test(row):
    tests = row.removesuffix(" |").rpartition(" | ")[2]
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


def test_promises_are_seen():
    assert len(PROMISES) > 20
