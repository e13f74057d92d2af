"""The promises of docs/trust.md, and the tests that it names for them."""

from __future__ import annotations

import re

from places import ROOT

PROMISES = [
    line
    for line in (ROOT / "docs" / "trust.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and line not in ("| promise | test |", "|---|---|")
]
FILE = re.compile(r"\[(\w+)\]\(\.\./(tests/[\w/]+/(\w+)\.py)\)((?:,? `\w+`)+)")


def named_in(promise: str) -> str:
    """The cell of a row that names tests."""
    return promise.removesuffix(" |").rpartition(" | ")[2]


HOLDING = {
    (file[2], name)
    for promise in PROMISES
    for file in FILE.finditer(named_in(promise))
    for name in re.findall(r"`(\w+)`", file[4])
}
"""(file, function) of every test that holds a promise; all of them bear the mark ``attack``."""
