"""Three prompts in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from batches import PROMPTS


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path
