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


def test_promises_are_seen():
    assert len(PROMISES) > 20
