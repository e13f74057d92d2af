"""Building blocks: residual block, spatial attention, transformer block, up and down."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Backend, attend

Layer = TypeVar("Layer", bound=nn.Module)


def zero(layer: Layer) -> Layer:
    """The layer with all its parameters zero: a branch that begins by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def normal(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A learned embedding, N(0, std^2) at the start."""
    embedding = nn.Parameter(torch.empty(*shape))
    nn.init.normal_(embedding, std=std)
    return embedding


class GroupNorm(nn.GroupNorm):
    """PyTorch's, whose sums are in float32 whatever the input is.

    On a CPU its backward pass is slow in bfloat16 below 32 channels a group: there it is done in float32,
    which takes 1.3 to 1.8 times less (docs/benchmarks.md). What it puts out is the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.num_channels < 32 * self.num_groups
        if narrow and x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.requires_grad:
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def group_norm(channels: int, groups: int = 32) -> GroupNorm:
    """So many groups, or the most that divide both."""
    return GroupNorm(math.gcd(groups, channels), channels)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 1e4) -> Tensor:
    """Sinusoids of t: cosines, then sines (Ho et al. 2020, from Vaswani et al. 2017, sec. 3.5).

    t: [N], of any number type. Returns float32 [N, dim], with a last 0 when dim is odd.
    """
    half = dim // 2
    powers = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * powers)  # [N, dim // 2]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))  # [N, dim]


def time_mlp(channels: int, width: int) -> nn.Sequential:
    """Two layers over a timestep embedding: [N, channels] -> [N, width]."""
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))


class Unit(nn.Module):
    """A part that a network is a row of: where memory is saved, and weights are shared out (FSDP).

    With ``checkpointing`` the backward pass computes the unit again, instead of having kept what was
    computed in it (Chen et al. 2016, arXiv:1604.06174).
    """

    checkpointing = False

    def forward(self, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)

    compute: Callable[..., Tensor]


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour, [N, C, H, W] -> [N, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels, [N, C, H, W] -> [N, C, H/2, W/2]."""
    return F.avg_pool2d(x, 2)


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution: [N, C, H, W] -> [N, C, 2H, 2W]."""

    def __init__(self, channels: int, conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsample(x))


class Downsample(nn.Module):
    """A convolution of stride 2, or the mean of 2x2: [N, C, H, W] -> [N, C, H/2, W/2]."""

    def __init__(self, channels: int, conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResBlock(nn.Module):
    """Residual block of ADM (Dhariwal & Nichol 2021, sec. 3), modulated by an embedding.

    channels, out_channels: of the input and the output.
    emb_channels: width of the embedding.
    dropout: chance, before the last convolution.
    scale_shift: the embedding scales and shifts the second norm; else it is added before it.
    resample: "up" or "down" doubles or halves the picture inside the block.
    groups: of the group norms.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Literal["up", "down"] | None = None,
        groups: int = 32,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        resamplers: dict[str | None, Callable[[Tensor], Tensor]]
        resamplers = {"up": upsample, "down": downsample, None: nn.Identity()}
        self.resample = resamplers[resample]
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [N, C, H, W]; emb: [N, E], already activated (SiLU). Returns [N, C', H', W']."""
        h = F.silu(self.norm1(x))  # [N, C, H, W]
        h, x = self.resample(h), self.resample(x)  # [N, C, H', W']
        h = self.conv1(h)  # [N, C', H', W']
        emb = self.emb(emb)[:, :, None, None].to(h.dtype)  # [N, C' or 2C', 1, 1]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)  # [N, C', 1, 1] each
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)  # [N, C', H', W']
        else:
            h = self.norm2(h + emb)  # [N, C', H', W']
        h = self.conv2(self.dropout(F.silu(h)))  # [N, C', H', W']
        return self.skip(x) + h  # [N, C', H', W']


class SpatialAttention(nn.Module):
    """Pixels attend to each other and, where there is one, to a context (GLIDE; unCLIP, sec. 2.1).

    The context's keys stand before the pixels' keys. The channels of `qkv` and `context_kv` are
    ordered by head first, and q, k, v within a head.

    channels: of the picture. heads: must divide them (ValueError).
    context_channels: width of the context's tokens; None = pixels only.
    groups: of the group norm.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int | None = None,
        backend: Backend = "sdpa",
        groups: int = 32,
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} attention heads do not divide {channels} channels")
        self.heads, self.backend = heads, backend
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        if context_channels is not None:
            self.context_kv = nn.Linear(context_channels, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: [N, C, H, W]; context: [N, L, K]; mask: bool [N, L], True = attend."""
        pixels = rearrange(self.norm(x), "n c h w -> n (h w) c")  # [N, HW, C]
        q, k, v = self._split(self.qkv(pixels), 3)  # [N, HW, heads, D]
        if context is not None:
            context_k, context_v = self._split(self.context_kv(context), 2)  # [N, L, heads, D]
            k = torch.cat([context_k, k], dim=1)  # [N, L + HW, heads, D]
            v = torch.cat([context_v, v], dim=1)  # [N, L + HW, heads, D]
            if mask is not None:
                mask = F.pad(mask, (0, pixels.shape[1]), value=True)  # [N, L + HW]
        h = self.out(attend(q, k, v, mask, self.backend))  # [N, HW, C]
        return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])  # [N, C, H, W]

    def _split(self, x: Tensor, parts: int) -> Tensor:
        return rearrange(x, "n l (heads parts d) -> parts n l heads d", heads=self.heads, parts=parts)


class Refine(nn.Module):
    """Two convolutions on whole pixels, after patches were put together: seams between them close.

    They see the network's input beside the patches, so that fine detail need not pass the coarse grid.
    """

    def __init__(self, channels: int, in_channels: int, out_channels: int):
        super().__init__()
        self.mix = nn.Conv2d(channels + in_channels, channels, 3, padding=1)
        self.out = zero(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """h: [N, C, H, W], the patches; x: [N, Cin, H, W]. Returns [N, Cout, H, W]."""
        return self.out(F.silu(h + self.mix(torch.cat([h, x], dim=1))))  # [N, Cout, H, W]


class Cache:
    """Keys and values [N, L, H, D] of the positions that a block has seen, so that none is computed twice."""

    pair: tuple[Tensor, Tensor] | None = None

    def joined(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All of them, with those of the next positions at the end."""
        if self.pair is not None:
            k, v = torch.cat([self.pair[0], k], dim=1), torch.cat([self.pair[1], v], dim=1)
        self.pair = k, v
        return self.pair


class TransformerBlock(Unit):
    """Pre-norm attention and a GELU MLP of 4 times the width (GPT-2; unCLIP's prior; GLIDE's text).

    The channels of `qkv` are ordered by head first, and q, k, v within a head.
    Raises ValueError when the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, backend: Backend = "sdpa"):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {width}")
        self.heads, self.backend = heads, backend
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zero(nn.Linear(width, width))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), zero(nn.Linear(4 * width, width)))
        self.dropout = nn.Dropout(dropout)

    def compute(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """x: [N, L, W]; mask as in `attend`. Returns [N, L, W]. cache: x goes on where it ends."""
        qkv = self.qkv(self.norm1(x))  # [N, L, 3W]
        q, k, v = rearrange(
            qkv, "n l (heads three d) -> three n l heads d", heads=self.heads, three=3
        )  # [N, L, heads, D]
        if cache is not None:
            k, v = cache.joined(k, v)
        h = self.out(attend(q, k, v, mask, self.backend))  # [N, L, W]
        x = x + self.dropout(h)  # [N, L, W]
        return x + self.dropout(self.mlp(self.norm2(x)))  # [N, L, W]
