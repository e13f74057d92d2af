"""Stages from their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import CheckpointError, read_header
from .decoder import Decoder
from .prior import Prior

STAGES: dict[str, type[Prior] | type[Decoder]] = {stage.kind(): stage for stage in (Prior, Decoder)}


def load_stage(
    path: str | Path,
    kind: str | None = None,  # "prior" or "decoder"; None takes either
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Prior | Decoder:
    """Rebuild a stage from its checkpoint, as ``Saved.load`` does, whichever it is."""
    held = read_header(path, kind)["kind"]
    if held not in STAGES:
        raise CheckpointError(f"{path} holds a {held}, not a {' or a '.join(STAGES)}")
    return STAGES[held].load(path, device, dtype)
