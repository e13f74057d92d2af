"""Tiny models of the public code as if they had been published: files, and an entry in the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from places import FIXTURES
from public_numbers import fixture

from unclip.convert.catalogue import ADM, MODELS, PublicFile, PublicModel

NAME = "adm-tiny"


def arguments(path: Path) -> dict:
    """The constructor's arguments in a fixture's header, with a process."""
    return {**fixture(path)[0], "noise_schedule": "linear", "diffusion_steps": 1000}


def write_weights(path: Path, to: Path) -> Path:
    """A fixture's weights as the public code would store them."""
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.float() for name, value in fixture(path)[1].items()}, to)
    return to


def publish(monkeypatch: pytest.MonkeyPatch, cache: Path) -> PublicModel:
    """Add a tiny ADM to the table, with its file in the cache."""
    network = FIXTURES / "adm" / "unconditional_legacy.safetensors"
    model = PublicModel(
        NAME,
        "adm",
        "a tiny ADM",
        ADM,
        files={"decoder": PublicFile("http://127.0.0.1:1/tiny.pt")},
        args={"decoder": arguments(network)},
        sampling={"decoder": {"sampler": "ddpm", "steps": 2}},
    )
    monkeypatch.setenv("UNCLIP_CACHE", str(cache))
    monkeypatch.setitem(MODELS, NAME, model)
    write_weights(network, cache / "adm" / "tiny.pt")
    return model
