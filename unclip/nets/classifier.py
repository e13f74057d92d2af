"""A classifier of noised pictures: the encoder half of a U-Net, read out by attention pooling.

Dhariwal & Nichol 2021, section 4.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from .attention import Backend, attend
from .blocks import group_norm, normal, time_mlp, timestep_embedding, zero
from .encoder import EncoderConfig, encoder, middle


class ClassifierConfig(EncoderConfig):
    classes: int = Field(gt=1, le=1 << 24)  # number of classes
    # How the classes are read: from the last grid by attention or as its mean, or from the means of
    # all grids by two layers (with a group norm between them in v2). Named as in the public code.
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"


class AttentionPool(nn.Module):
    """One vector a picture: its mean pixel attends to the mean and all pixels (CLIP, sec. 2.4).

    The channels of `qkv` are ordered q, k, v first, and by head within each.
    Raises ValueError when the heads do not divide the channels.
    """

    def __init__(self, side: int, channels: int, heads: int, out_channels: int, backend: Backend = "sdpa"):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} attention heads do not divide {channels} channels")
        self.heads, self.backend = heads, backend
        self.position = normal(channels, 1 + side**2, std=channels**-0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, side, side]. Returns [N, out_channels]."""
        x = rearrange(x, "n c h w -> n (h w) c")  # [N, HW, C]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)  # [N, 1 + HW, C]
        x = x + self.position.T  # [N, 1 + HW, C]
        q, k, v = rearrange(
            self.qkv(x), "n l (three heads d) -> three n l heads d", three=3, heads=self.heads
        )  # [N, 1 + HW, heads, D]
        return self.out(attend(q[:, :1], k, v, backend=self.backend))[:, 0]  # [N, out_channels]


class NoisedClassifier(nn.Module):
    """Maps a noised picture and a time to the logits of its class."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.time = time_mlp(config.channels, config.emb_channels)
        self.encoder, skips = encoder(config, context=None)
        self.middle = middle(config, skips[-1], context=None)
        if not config.pool.startswith("spatial"):
            self.norm = group_norm(skips[-1], config.norm_groups)
        self.pool = _pool(config, skips)
        self.to(memory_format=torch.channels_last)  # in which convolutions are fastest

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [N, Cin, image_size, image_size]; t: float [N]. Returns [N, classes]."""
        if self.config.pool == "attention":
            return self.pool(self._normed(self._grids(x, t)[-1]))  # [N, classes]
        return self.pool(self.features(x, t))  # [N, classes]

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """What the classes are read from, averaged over places: [N, C], C of the last level (in a
        spatial pool, of all grids)."""
        grids = self._grids(x, t)
        if self.config.pool.startswith("spatial"):
            return torch.cat([grid.mean((2, 3)) for grid in grids], dim=1)  # [N, sum of C]
        return self._normed(grids[-1]).mean((2, 3))  # [N, C]

    def _normed(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))  # [N, C, H', W']

    def _grids(self, x: Tensor, t: Tensor) -> list[Tensor]:
        emb = F.silu(self.time(timestep_embedding(t, self.config.channels)))  # [N, E]
        k = self.config.pixel_unshuffle
        h = F.pixel_unshuffle(x, k) if k > 1 else x  # [N, kkCin, H/k, W/k]
        grids = []
        for block in [*self.encoder, self.middle]:
            h = block(h, emb, None, None)  # [N, C, H', W']
            grids.append(h)
        return grids


def _pool(config: ClassifierConfig, skips: list[int]) -> nn.Module:
    """skips: channels of the grids on the way down; the middle's are those of the last."""
    if config.pool == "attention":
        heads = config.heads(skips[-1])
        return AttentionPool(config.grid_sizes[-1], skips[-1], heads, config.classes, config.attention)
    if config.pool == "adaptive":
        return zero(nn.Linear(skips[-1], config.classes))
    first, last = nn.Linear(sum(skips) + skips[-1], 2048), nn.Linear(2048, config.classes)
    if config.pool == "spatial":
        return nn.Sequential(first, nn.ReLU(), last)
    return nn.Sequential(first, group_norm(2048), nn.SiLU(), last)
