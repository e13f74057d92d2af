"""An autoencoder: pictures as a smaller grid of latents, and back (MoVQ, Zheng et al. 2022)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config, Depth, Width
from .attention import attend
from .blocks import upsample

EPS = 1e-6  # of the group norms


class AutoencoderConfig(Config):
    channels: Width  # of the first level; the others are multiples
    # One for each level; each but the last halves the grid.
    channel_mult: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field(min_length=1, max_length=12)
    num_res_blocks: Annotated[int, Field(ge=1, le=64)] = 2  # a level, going down; one more going up
    attention_levels: tuple[Depth, ...] = ()  # levels with attention, the first is 1; the middle has it, too
    latent_channels: Width = 4
    latent_scale: float = Field(
        1.0, gt=0, le=1e4
    )  # what latents are multiplied by, for a deviation of about 1
    modulated: bool = True  # the decoder's norms by the latent (MoVQ); False: plain group norms
    norm_groups: Width = 32

    @model_validator(mode="after")
    def _levels_exist(self) -> AutoencoderConfig:
        if bad := [width for width in self.widths if width < 1 or width % self.norm_groups]:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide levels of {bad} channels")
        if missing := [level for level in self.attention_levels if level > len(self.widths)]:
            raise ValueError(f"attention_levels {missing} do not occur: there are {len(self.widths)}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(int(mult * self.channels) for mult in self.channel_mult)

    @property
    def factor(self) -> int:
        """How many pixels a side one latent stands for."""
        return 2 ** (len(self.channel_mult) - 1)


class Norm(nn.Module):
    """A group norm, scaled and shifted at every place by what the latent is there (arXiv:2209.09002, eq. 4).

    latent: its channels; None = plain.
    """

    def __init__(self, channels: int, groups: int, latent: int | None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPS)
        if latent is not None:
            self.scale = nn.Conv2d(latent, channels, 1)
            self.shift = nn.Conv2d(latent, channels, 1)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        """x: [N, C, H, W]; z: [N, L, h, w], the latent, where it modulates."""
        h = self.norm(x)  # [N, C, H, W]
        if z is None:
            return h
        z = F.interpolate(z, size=x.shape[2:], mode="nearest")  # [N, L, H, W]
        return h * self.scale(z) + self.shift(z)  # [N, C, H, W]


class Residual(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, channels: int, out_channels: int, groups: int, latent: int | None) -> None:
        super().__init__()
        self.norm1 = Norm(channels, groups, latent)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = Norm(out_channels, groups, latent)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, z)))  # [N, C', H, W]
        h = self.conv2(F.silu(self.norm2(h, z)))  # [N, C', H, W]
        return self.skip(x) + h  # [N, C', H, W]


class Attention(nn.Module):
    """Places attend to each other, with one head."""

    def __init__(self, channels: int, groups: int, latent: int | None) -> None:
        super().__init__()
        self.norm = Norm(channels, groups, latent)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        h = self.norm(x, z).flatten(2).transpose(1, 2)  # [N, HW, C]
        q, k, v = self.qkv(h)[:, :, None].chunk(3, dim=-1)  # [N, HW, 1, C]
        h = self.out(attend(q, k, v))  # [N, HW, C]
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])  # [N, C, H, W]


class Halve(nn.Module):
    """A convolution of stride 2 that looks to the right and below: [N, C, H, W] -> [N, C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Nearest neighbour, then a convolution: [N, C, H, W] -> [N, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        return self.conv(upsample(x))


class Tower(nn.Module):
    """One half: a convolution, ``layers`` in a row, a norm, a convolution."""

    def __init__(self, first: nn.Conv2d, layers: list[nn.Module], norm: Norm, out: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.layers, self.norm, self.out = first, nn.ModuleList(layers), norm, out

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, z)
        return self.out(F.silu(self.norm(h, z)))


def _level(
    config: AutoencoderConfig, level: int, channels: int, blocks: int, latent: int | None
) -> list[nn.Module]:
    """The blocks of one level, the first of which takes so many channels."""
    width, groups = config.widths[level], config.norm_groups
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers.append(Residual(channels, width, groups, latent))
        if level + 1 in config.attention_levels:
            layers.append(Attention(width, groups, latent))
        channels = width
    return layers


def _middle(config: AutoencoderConfig, latent: int | None) -> list[nn.Module]:
    width, groups = config.widths[-1], config.norm_groups
    layers: list[nn.Module] = [
        Residual(width, width, groups, latent),
        Attention(width, groups, latent),
        Residual(width, width, groups, latent),
    ]
    return layers


def encoder(config: AutoencoderConfig) -> Tower:
    widths, channels = config.widths, config.widths[0]
    layers: list[nn.Module] = []
    for level, width in enumerate(widths):
        layers += _level(config, level, channels, config.num_res_blocks, None)
        layers += [Halve(width)] if level < len(widths) - 1 else []
        channels = width
    return Tower(
        nn.Conv2d(3, widths[0], 3, padding=1),
        [*layers, *_middle(config, None)],
        Norm(widths[-1], config.norm_groups, None),
        nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1),
    )


def decoder(config: AutoencoderConfig) -> Tower:
    widths, latent = config.widths, config.latent_channels if config.modulated else None
    layers: list[nn.Module] = _middle(config, latent)
    channels = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        layers += _level(config, level, channels, config.num_res_blocks + 1, latent)
        layers += [Double(width)] if level > 0 else []
        channels = width
    return Tower(
        nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1),
        layers,
        Norm(widths[0], config.norm_groups, latent),
        nn.Conv2d(widths[0], 3, 3, padding=1),
    )


class Autoencoder(nn.Module):
    """Pictures [N, 3, H, W] in [-1, 1] to latents [N, L, H/f, W/f] and back; f is ``config.factor``.

    A codebook serves to train one: latents are drawn, encoded and decoded as they come, unquantised.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.to_latent, self.from_latent = nn.Conv2d(latent, latent, 1), nn.Conv2d(latent, latent, 1)
        self.requires_grad_(False)

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> [N, L, H/f, W/f], H and W multiples of f."""
        with self._precision():
            return self.to_latent(self.encoder(picture)).float() * self.config.latent_scale

    def decode(self, latent: Tensor) -> Tensor:
        """[N, L, h, w] -> [N, 3, fh, fw], in about [-1, 1]."""
        z = latent / self.config.latent_scale  # [N, L, h, w]
        with self._precision():
            picture = self.decoder(self.from_latent(z), z if self.config.modulated else None)
        return picture.float()  # [N, 3, fh, fw]

    def _precision(self) -> AbstractContextManager[object]:
        """bfloat16 for weights of bfloat16, and else none: a picture's detail is made here."""
        weight = self.to_latent.weight
        if weight.is_meta:  # of which memory is counted
            return nullcontext()
        return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16)

    def forward(self, picture: Tensor) -> Tensor:
        """There and back."""
        return self.decode(self.encode(picture))
