"""Stages from their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import CheckpointError, load_checkpoint, rebuilt
from .config import DecoderStageConfig, PriorStageConfig
from .decoder import Decoder
from .prior import Prior

STAGES = {"prior": (Prior, PriorStageConfig), "decoder": (Decoder, DecoderStageConfig)}


def load_stage(
    path: str | Path,
    kind: str | None = None,  # "prior" or "decoder"; None takes either
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Prior | Decoder:
    """Rebuild a stage from its checkpoint, strictly; eval mode, no gradients.

    It is built on the meta device and takes the file's tensors as they are: nothing is initialised at
    random, and there is never a second copy. dtype: of its weights; bfloat16 takes half the memory, and
    is to be run under autocast.
    """
    tensors, header = load_checkpoint(path, kind, dtype, device)
    if header["kind"] not in STAGES:
        raise CheckpointError(f"{path} holds a {header['kind']}, not a {' or a '.join(STAGES)}")
    stage_class, config_class = STAGES[header["kind"]]
    return rebuilt(stage_class, config_class, tensors, header, str(path)).to(device)
