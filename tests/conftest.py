"""What the tests share: a whole model, tiny and untrained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core, so a thread a process
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from places import ROOT
from promises import HOLDING
from tiny_models import tiny_pipeline

import unclip
from unclip.pipeline.pipeline import Pipeline
from unclip.resources.devices import autocast


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What docs/trust.md names as the test of a promise is run by ``-m attack``, wherever it stands."""
    for item in items:
        name = getattr(item, "originalname", None)
        if (item.path.relative_to(ROOT).as_posix(), name) in HOLDING:
            item.add_marker(pytest.mark.attack)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between runs is kept in a folder of the tests; the user's public weights are not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny untrained model; not to be written to."""
    return tiny_pipeline().save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    """It, loaded; a file's tests share it."""
    return unclip.load(tiny_model)


@pytest.fixture(scope="session")
def small_icons() -> Pipeline:
    """The shipped model without its upsampler, which takes most of the time and draws detail alone."""
    icons = unclip.load("icons", "cpu")
    return Pipeline(icons.decoder, icons.prior, [], icons.clip, icons.name)


@pytest.fixture
def loaded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw with it, whichever model they are asked for."""
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: pipeline)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16, whatever the machine has: rounding hides no difference then."""
    monkeypatch.setattr("unclip.pipeline.drawing.autocast", partial(autocast, enabled=False))
