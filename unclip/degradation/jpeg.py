"""What JPEG leaves of a picture, without a file."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The quantisation tables of the standard (ITU-T T.81, annex K), at quality 50: of brightness and of colour.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Y, Cb and Cr of red, green and blue (JFIF 1.02); Cb and Cr lie around 128.
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(picture: Tensor, quality: int) -> Tensor:
    """A picture [3,H,W] in [-1,1] as it comes back from a JPEG file: colour at half the size, as is usual.

    quality: 1 to 100, as libjpeg counts; else ``ValueError``. Losses alone are computed, no codes.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG's quality is 1 to 100, not {quality}")
    height, width = picture.shape[1:]
    bytes_ = ((picture.clamp(-1, 1) + 1) * 127.5).round()[None]  # [1,3,H,W]
    padded = F.pad(bytes_, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycc = picture.new_tensor(YCC)
    # Around 0; a constant part of brightness alone moves.
    luma, colour = torch.tensordot(to_ycc, padded[0], dims=1).split((1, 2))
    luma = _through_blocks((luma - 128).round(), table(LUMA, quality).to(picture)) + 128
    halved = F.avg_pool2d(colour[None], 2)[0].round()
    halved = _through_blocks(halved, table(CHROMA, quality).to(picture))
    # A decoder enlarges by a triangle, nearer pixels three times as much as farther ones: bilinearly.
    colour = F.interpolate(halved[None], scale_factor=2.0, mode="bilinear", align_corners=False)[0]
    rgb = torch.tensordot(torch.linalg.inv(to_ycc.double()).to(picture), torch.cat([luma, colour]), dims=1)
    return rgb[:, :height, :width].round().clamp(0, 255) / 127.5 - 1


def table(base: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Quantisation steps [8,8] at a quality of 1 to 100, as libjpeg scales them."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor(base).mul(percent).add(50).floor_divide(100).clamp(1, 255)


def _through_blocks(channels: Tensor, steps: Tensor) -> Tensor:
    """[C,H,W], quantised in the frequencies of its blocks of 8x8; the result is whole numbers."""
    c, h, w = channels.shape
    blocks = channels.view(c, h // 8, 8, w // 8, 8).transpose(2, 3)  # [C,H/8,W/8,8,8]
    basis = _cosines().to(channels)
    frequencies = basis @ blocks @ basis.T
    blocks = basis.T @ (frequencies / steps).round().mul(steps) @ basis
    return blocks.transpose(2, 3).reshape(c, h, w).round().clamp(-128, 127)


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform [8,8] of 8 numbers: a frequency a row."""
    k, x = torch.arange(8.0)[:, None], torch.arange(8.0)
    rows = torch.cos(math.pi * (2 * x + 1) * k / 16) / 2
    return torch.cat([rows[:1] * 0.5**0.5, rows[1:]])
