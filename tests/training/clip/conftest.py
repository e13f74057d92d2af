"""What the tests of CLIP's training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clip_runs import MODEL, RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    """recipe("run", "model: ...") writes a recipe for the folder "run"; returns its path as text."""

    def write(name: str, what: str = f"model: {MODEL}") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"out: {tmp_path / name}\n{what}\n{RECIPE}")
        return str(path)

    return write
