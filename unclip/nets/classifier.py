"""A classifier of noised pictures: the encoder half of a U-Net, read out by attention pooling.

Dhariwal & Nichol 2021, section 4.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from unclip.nets.attention import Backend, attend
from unclip.nets.blocks import group_norm, normal, time_mlp, timestep_embedding
from unclip.nets.unet import EncoderConfig, encoder, middle


class ClassifierConfig(EncoderConfig):
    classes: int = Field(gt=1)                   # number of classes


class AttentionPool(nn.Module):
    """One vector a picture: its mean pixel attends to the mean and all pixels (CLIP, sec. 2.4).

    The channels of `qkv` are ordered q, k, v first, and by head within each.
    Raises ValueError when the heads do not divide the channels.
    """

    def __init__(
        self, side: int, channels: int, heads: int, out_channels: int, backend: Backend = "sdpa"
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} attention heads do not divide {channels} channels")
        self.heads, self.backend = heads, backend
        self.position = normal(channels, 1 + side**2, std=channels**-0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, side, side]. Returns [N, out_channels]."""
        x = rearrange(x, "n c h w -> n (h w) c")                             # [N, HW, C]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)                   # [N, 1 + HW, C]
        x = x + self.position.T                                              # [N, 1 + HW, C]
        q, k, v = rearrange(
            self.qkv(x), "n l (three heads d) -> three n l heads d", three=3, heads=self.heads
        )                                                                    # [N, 1 + HW, heads, D]
        return self.out(attend(q[:, :1], k, v, backend=self.backend))[:, 0]  # [N, out_channels]


class NoisedClassifier(nn.Module):
    """Maps a noised picture and a time to the logits of its class."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.time = time_mlp(config.channels, config.emb_channels)
        self.encoder, skips = encoder(config, context=None)
        self.middle = middle(config, skips[-1], context=None)
        self.norm = group_norm(skips[-1], config.norm_groups)
        heads = config.num_heads or max(1, skips[-1] // config.head_channels)
        self.pool = AttentionPool(
            config.grid_sizes[-1], skips[-1], heads, config.classes, config.attention
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [N, Cin, image_size, image_size]; t: float [N]. Returns [N, classes]."""
        return self.pool(self._grid(x, t))                                    # [N, classes]

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """What the classes are read from, averaged over places: [N, C], C of the last level."""
        return self._grid(x, t).mean((2, 3))                                  # [N, C]

    def _grid(self, x: Tensor, t: Tensor) -> Tensor:
        emb = F.silu(self.time(timestep_embedding(t, self.config.channels)))  # [N, E]
        k = self.config.pixel_unshuffle
        h = F.pixel_unshuffle(x, k) if k > 1 else x                           # [N, kkCin, H/k, W/k]
        for block in self.encoder:
            h = block(h, emb, None, None)                                     # [N, C, H', W']
        h = self.middle(h, emb, None, None)                                   # [N, C, H', W']
        return F.silu(self.norm(h))                                           # [N, C, H', W']
