"""What all tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runs import forget


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test begins like a program, and leaves nothing to the next."""
    forget()
    yield
    forget()
