"""Stages from their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import CheckpointError, read_header
from .decoder import Decoder
from .prior import Prior
from .prior_ar import ARPrior

AnyPrior = Prior | ARPrior
PRIORS: dict[str, type[AnyPrior]] = {stage.kind(): stage for stage in (Prior, ARPrior)}
STAGES: dict[str, type[AnyPrior] | type[Decoder]] = {**PRIORS, Decoder.kind(): Decoder}


def load_stage(
    path: str | Path,
    kind: str | None = None,  # a name in STAGES; None takes any
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AnyPrior | Decoder:
    """Rebuild a stage from its checkpoint, as ``Saved.load`` does, whichever it is."""
    held = read_header(path, kind)["kind"]
    if held not in STAGES:
        raise CheckpointError(f"{path} holds a {held}, not a {' or a '.join(STAGES)}")
    return STAGES[held].load(path, device, dtype)


def load_prior(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> AnyPrior:
    """A prior of any kind, as ``load_stage``; raises ``CheckpointError`` for another stage."""
    held = read_header(path)["kind"]
    return PRIORS.get(held, Prior).load(path, device, dtype)


load_decoder = Decoder.load
