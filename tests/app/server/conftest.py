"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Running, serving

from unclip.pipeline.pipeline import Pipeline


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    """A server of the tiny model, which a file's tests share."""
    with serving(pipeline) as running:
        yield running
