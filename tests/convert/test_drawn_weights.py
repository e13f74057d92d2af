"""The weights of the public networks' fixtures, drawn again, are those that the public code had."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
import torch
from drawn_weights import Normals
from places import FIXTURES
from public_numbers import fixture
from safetensors import safe_open

FILES = sorted([*(FIXTURES / "adm").glob("*.safetensors"), *(FIXTURES / "glide").glob("*.safetensors")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_they_have_the_sum_of_those_that_the_public_code_had(path):
    with safe_open(path, "pt") as file:
        known = file.metadata()["sha256"]
    total = sha256()
    for name, value in sorted(fixture(path)[1].items()):
        total.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    assert total.hexdigest() == known


@pytest.mark.parametrize("sizes", [(16, 48), (17, 31), (1000,), (6, 20, 10), (5,)])
def test_numbers_are_torchs_but_for_its_rounding(sizes):
    ours, theirs = Normals(7), torch.Generator().manual_seed(7)
    for size in sizes:
        np.testing.assert_allclose(ours(size), torch.randn(size, generator=theirs), atol=2e-6)
