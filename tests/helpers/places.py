"""Where things lie: the checkout, the public code's numbers, and a few real icons."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
DATA = TESTS / "data"
TRAIN, HELDOUT = DATA / "icons-64-train-000000.tar", DATA / "icons-64-heldout-000000.tar"


def fixtures(*patterns: str) -> list[Path]:
    """Files of the folder that UNCLIP_FIXTURES may name; of ours where it has none of the kind."""
    for folder in (Path(os.environ.get("UNCLIP_FIXTURES", FIXTURES)), FIXTURES):
        files = sorted(path for pattern in patterns for path in folder.glob(pattern))
        if files:
            return files
    raise FileNotFoundError(f"no {' or '.join(patterns)} in {FIXTURES}")
