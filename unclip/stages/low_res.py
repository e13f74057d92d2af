"""The smaller picture that an upsampler starts from: spoilt in training, and enlarged to join its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..degradation.bsr import bsr
from ..diffusion.noise import Random, rand, randn
from .config import LowRes


def blur3(picture: Tensor, sigma: Tensor) -> Tensor:
    """3x3 Gaussian blur of [N,3,H,W] with sigma [N,1,1,1] in pixels; 0 leaves the picture alone."""
    side = torch.exp(-0.5 / sigma.square().clamp_min(1e-6))  # weight of a neighbour, the centre's is 1
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:])
    both = rows[..., 1:-1] + side * (rows[..., :-2] + rows[..., 2:])
    return both / (1 + 2 * side).square()


def corrupt(picture: Tensor, factor: int, config: LowRes, generator: Random = None) -> Tensor:
    """Pictures [N,3,f*s,f*s] -> spoilt and smaller ones [N,3,s,s], as ``config`` says.

    Blur and noise come after the mean of each cell, each as strongly as chance has it.
    """
    if config.degradation == "bsr":
        return bsr(picture, factor, generator)
    low_res = F.interpolate(picture, size=[side // factor for side in picture.shape[2:]], mode="area")

    def uniform() -> Tensor:
        return rand((len(low_res), 1, 1, 1), low_res.device, generator)

    if config.blur:
        low_res = blur3(low_res, config.blur * uniform())
    if config.noise:
        noise = randn(low_res.shape, low_res.device, generator)
        low_res = low_res + config.noise * uniform() * noise
    return low_res.clamp(-1, 1)


def enlarge(low_res: Tensor, config: LowRes, factor: int) -> Tensor:
    """[N,3,s,s] in [-1,1] -> [N,3,f*s,f*s]."""
    if config.round_to_8bit:
        # Rounded, as in GLIDE's notebooks; ADM reads files, for which its script cuts decimals off.
        low_res = ((low_res + 1) * 127.5).round() / 127.5 - 1
    # An antialiased bicubic kernel is another one (a = -0.5 for -0.75) even where it only enlarges.
    return F.interpolate(
        low_res,
        scale_factor=float(factor),
        mode=config.interpolation,
        align_corners=False,
        antialias=config.interpolation == "bicubic",
    )
