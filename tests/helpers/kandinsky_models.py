"""Kandinsky 2.2 in diffusers' own code, small and with random weights, and its folders."""

from __future__ import annotations

from karlo_models import awake
from torch import nn

MOVQ = {
    "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 5, "layers_per_block": 1,
    "norm_type": "spatial",
    "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}  # fmt: skip
DEEP_MOVQ = {
    "layers_per_block": 2, "block_out_channels": (64, 32, 96),
    "down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}  # fmt: skip


def movq(seed: int = 6, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import VQModel

    return awake(lambda: VQModel(**{**MOVQ, **changes}), seed, gain)
