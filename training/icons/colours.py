"""Named colours: what colour a picture has, and the same picture in another colour.

Hue is in degrees, saturation and value in [0, 1]; pictures are [N,4,H,W], premultiplied RGBA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# name -> (hue, saturation, value) of a typical pixel
OBJECTS = {
    "red": (2.0, 0.84, 0.86), "orange": (27.0, 0.90, 0.96), "yellow": (50.0, 0.84, 0.97),
    "green": (122.0, 0.62, 0.66), "turquoise": (174.0, 0.66, 0.78), "blue": (217.0, 0.78, 0.85),
    "purple": (276.0, 0.60, 0.74), "pink": (332.0, 0.48, 0.96), "brown": (24.0, 0.60, 0.46),
    "black": (220.0, 0.10, 0.14), "gray": (220.0, 0.05, 0.58),
}  # fmt: skip
BACKGROUNDS = {
    "red": (226, 48, 44), "orange": (247, 148, 40), "yellow": (252, 218, 62), "green": (72, 170, 86),
    "light green": (170, 226, 160), "turquoise": (64, 200, 190), "blue": (52, 110, 222),
    "light blue": (160, 208, 246), "purple": (138, 80, 190), "pink": (250, 164, 200),
    "brown": (124, 78, 48), "gray": (150, 152, 156), "black": (18, 18, 22),
}  # fmt: skip
NAMES = ("black", "white", "gray", "red", "orange", "yellow", "green", "turquoise", "blue",
         "purple", "pink", "brown", "beige")  # fmt: skip
_HUE_EDGES = (13.0, 41.0, 68.0, 160.0, 188.0, 256.0, 298.0, 345.0)
_HUE_NAMES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "red")


@dataclass(frozen=True)
class Colouring:
    """What was measured on M pictures.

    ``name`` [M] int64 indexes ``NAMES`` (-1: no one colour covers most of the picture); ``mean``
    [M,3]: red, green, blue; ``typical`` [M,3]: hue, saturation, value of the dominant hue;
    ``recolourable`` [M] bool: it has one hue, and that covers most of it.
    """

    name: Tensor
    mean: Tensor
    typical: Tensor
    recolourable: Tensor


def to_hsv(rgb: Tensor) -> Tensor:
    """[N,3,H,W] in [0,1] -> hue in degrees [0,360), saturation, value."""
    value, which = rgb.max(1)
    chroma = value - rgb.min(1).values
    r, g, b = rgb.unbind(1)
    safe = chroma.clamp_min(1e-6)
    sector = torch.where(
        which == 0, (g - b) / safe, torch.where(which == 1, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    saturation = chroma / value.clamp_min(1e-6)
    return torch.stack([sector * 60 % 360, saturation, value], 1)


def to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of ``to_hsv``."""
    hue, saturation, value = hsv.unbind(1)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (hue / 60 + offset) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def straight(rgba: Tensor) -> Tensor:
    """The colours [N,3,H,W] of premultiplied pictures [N,4,H,W]."""
    return (rgba[:, :3] / rgba[:, 3:].clamp_min(1e-3)).clamp(0, 1)


def name_pixels(hsv: Tensor) -> Tensor:
    """Index into ``NAMES`` of every pixel: [N,3,H,W] -> int64 [N,H,W]."""
    hue, saturation, value = hsv.unbind(1)
    table = torch.tensor([NAMES.index(name) for name in _HUE_NAMES])
    names = table[torch.bucketize(hue.contiguous(), torch.tensor(_HUE_EDGES))]
    warm = (hue < 45) | (hue > 350)
    tan = warm & (hue > 6)
    brown = tan & (saturation > 0.22) & ((value < 0.70) | (saturation < 0.72) & (value < 0.86))
    beige = tan & (saturation < 0.52) & (value >= 0.86)
    pale_red = warm & (hue < 16) | (hue > 345)
    pink = pale_red & (saturation < 0.55) & (value > 0.75)
    names = torch.where(brown, NAMES.index("brown"), names)
    names = torch.where(beige, NAMES.index("beige"), names)
    names = torch.where(pink, NAMES.index("pink"), names)
    grey = saturation < torch.where(value < 0.45, 0.30, 0.14)
    names = torch.where(grey, NAMES.index("gray"), names)
    names = torch.where(grey & (value > 0.86), NAMES.index("white"), names)
    return torch.where((value < 0.20) | grey & (value < 0.34), NAMES.index("black"), names)


def measure(rgba: Tensor, clear: float = 0.66) -> Colouring:
    """Name the colour of pictures [M,4,H,W] in [0,1]; ``clear``: the share that it must cover."""
    hsv = to_hsv(straight(rgba))
    inside = (rgba[:, 3] > 0.5).float().flatten(1)
    area = inside.sum(1).clamp_min(1)
    share = _histogram(name_pixels(hsv), inside, len(NAMES)) / area[:, None]
    most = share.max(1)

    hue, saturation, value = hsv.flatten(2).unbind(1)
    coloured = inside * (saturation > 0.22) * (value > 0.22)
    bins = _histogram((hue / 10).long() % 36, coloured * saturation, 36)
    peak = (bins + bins.roll(1, 1) + bins.roll(-1, 1)).argmax(1, keepdim=True) * 10.0 + 5
    near = coloured * (_turn(hue - peak).abs() < 32)
    weight = near.sum(1).clamp_min(1)
    offset, saturation, value = ((x * near).sum(1) / weight for x in (_turn(hue - peak), saturation, value))
    one_hue = near.sum(1) > 0.85 * coloured.sum(1)
    enough = (near.sum(1) > 0.55 * area) & (area > 0.05 * inside.shape[1])
    return Colouring(
        name=torch.where(most.values >= clear, most.indices, -1),
        mean=rgba[:, :3].sum((2, 3)) / rgba[:, 3].sum((1, 2))[:, None].clamp_min(1e-3),
        typical=torch.stack([(peak[:, 0] + offset) % 360, saturation, value], 1),
        recolourable=one_hue & enough & (saturation > 0.35),
    )


def _histogram(index: Tensor, weight: Tensor, size: int) -> Tensor:
    """Sums of weights [M,P] by index [M,...] -> [M,size]."""
    return torch.zeros(len(index), size).scatter_add_(1, index.flatten(1), weight)


def recolour(rgba: Tensor, typical: Tensor, target: Tensor) -> Tensor:
    """Bring the dominant hue of pictures [N,4,H,W] from ``typical`` [N,3] to ``target`` [N,3].

    Only saturated pixels near the dominant hue move, so outlines, eyes and glints stay; saturation
    and value are mapped piecewise linearly such that the typical pixel becomes the target's.
    """
    rgb = straight(rgba)
    hue, saturation, value = to_hsv(rgb).unbind(1)
    old, new = (x[:, :, None, None].unbind(1) for x in (typical, target))
    away = _turn(hue - old[0])
    weight = (
        ((saturation - 0.10) / 0.12).clamp(0, 1)
        * ((value - 0.12) / 0.12).clamp(0, 1)
        * ((60 - away.abs()) / 20).clamp(0, 1)
    )[:, None]
    paler = new[1] < old[1]  # then no pixel may keep its saturation: gray is gray all over
    painted = [
        (new[0] + away * 0.35) % 360,
        torch.where(paler, saturation * new[1] / old[1], _bend(saturation, old[1], new[1])),
        _bend(value, old[2], new[2]),
    ]
    painted = to_rgb(torch.stack(painted, 1))
    return torch.cat([torch.lerp(rgb, painted, weight) * rgba[:, 3:], rgba[:, 3:]], 1)


def _turn(degrees: Tensor) -> Tensor:
    """An angle brought to [-180, 180)."""
    return (degrees + 180) % 360 - 180


def _bend(x: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A monotone map of [0,1] into itself, linear in two pieces, that takes old to new."""
    old = old.clamp(0.02, 0.98)
    # Darkened a lot, what was a little lighter must not shoot up to white: the slope is limited.
    above = new + (x - old) * ((1 - new) / (1 - old)).clamp_max(2)
    return torch.where(x < old, x * new / old, above)
