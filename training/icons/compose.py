"""Draw scenes: place, scale, mirror and recolour pictures and lay them over a background.

A placement is an axis-parallel affine map, so resampling separates into one matrix a side:
``rows @ picture @ columns``. The kernel is the cubic of Keys (1981) with a = -1/2, widened when a
picture shrinks, so that nothing aliases and a picture moved by whole pixels stays exactly itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import colours

WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Layer:
    """One picture of a scene; lengths are in units of the scene's side."""

    index: int
    centre: tuple[float, float]  # where the middle of the drawing's box goes: x, y
    scale: float = 1.0
    flip: bool = False
    colour: str | None = None  # a key of ``colours.OBJECTS`` to recolour to


@dataclass(frozen=True)
class Scene:
    """One or two layers, the first lowest, on a background of red, green, blue in [0,1]."""

    layers: tuple[Layer, ...]
    caption: str
    background: tuple[float, float, float] = WHITE


def boxes(rgba: Tensor) -> Tensor:
    """The box of what is drawn: uint8 [M,4,S,S] -> [M,4] left, top, right, bottom in [0,1]."""
    drawn = rgba[:, 3] > 16
    size = rgba.shape[-1]
    ends = []
    for seen in (drawn.any(1), drawn.any(2)):  # columns, then rows: [M,S]
        seen = seen | ~seen.any(1, keepdim=True)  # an empty picture has the full box
        first = seen.int().argmax(1)
        ends.append((first, size - seen.flip(1).int().argmax(1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).float() / size


def draw(
    scenes: Sequence[Scene],
    rgba: Tensor,
    box: Tensor,
    typical: Tensor,
    corners: Sequence[tuple[int, int]],
    side: int,
) -> Tensor:
    """Draw windows of scenes.

    ``rgba`` uint8 [M,4,S,S] premultiplied, ``box`` [M,4], ``typical`` [M,3] of ``colours.measure``;
    ``corners``: top left of each window, x and y in pixels; ``side``: its size.
    Returns [N,3,side,side] in [-1,1].
    """
    lower = [(k, scene.layers[0]) for k, scene in enumerate(scenes)]
    upper = [(k, layer) for k, scene in enumerate(scenes) for layer in scene.layers[1:]]
    owner = [k for k, _ in lower + upper]
    layers = [layer for _, layer in lower + upper]
    size = rgba.shape[-1]
    source, width = _source(layers, box, torch.tensor([corners[k] for k in owner]), size, side)
    first = (source.amin(2) - 2 * width).floor().clamp(0, size).long()  # [L,2], pixels touched
    extent = ((source.amax(2) + 2 * width).ceil().long() - first + 1).clamp(1, size).amax(1)
    drawn = torch.empty(len(layers), 4, side, side)
    # Small windows touch few pixels of most pictures: those are drawn from a part of each.
    for group in (extent <= size // 2, extent > size // 2):
        rows = group.nonzero()[:, 0]
        if len(rows):
            reach = int(extent[rows].max())
            start = first[rows].clamp_max(size - reach)
            parts = [
                rgba[layers[k].index, :, y : y + reach, x : x + reach]
                for k, (x, y) in zip(rows.tolist(), start.tolist(), strict=True)
            ]
            parts = torch.stack(parts).float().div_(255)
            _paint(parts, [layers[k] for k in rows.tolist()], typical)
            drawn[rows] = _resample(parts, source[rows] - start[:, :, None], width[rows])
    return _overlay(scenes, drawn, owner)


def _overlay(scenes: Sequence[Scene], drawn: Tensor, owner: Sequence[int]) -> Tensor:
    """Lay premultiplied layers [L,4,S,S] over backgrounds; the first N layers are the lowest."""
    n = len(scenes)
    alpha = drawn[:, 3:].clamp_(0, 1)  # the cubic overshoots at edges, hence the clamps
    colour = drawn[:, :3]
    background = torch.tensor([scene.background for scene in scenes])[:, :, None, None]
    image = torch.addcmul(colour[:n] + background, alpha[:n], background, value=-1).clamp_(0, 1)
    for row, k in enumerate(owner[n:], start=n):
        image[k] = (colour[row] + (1 - alpha[row]) * image[k]).clamp_(0, 1)
    return image.mul_(2).sub_(1)


def _paint(pictures: Tensor, layers: Sequence[Layer], typical: Tensor) -> None:
    rows = [k for k, layer in enumerate(layers) if layer.colour]
    if rows:
        old = typical[[layers[k].index for k in rows]]
        new = torch.tensor([colours.OBJECTS[layers[k].colour] for k in rows])
        pictures[rows] = colours.recolour(pictures[rows], old, new)


def _source(
    layers: Sequence[Layer], box: Tensor, start: Tensor, size: int, side: int
) -> tuple[Tensor, Tensor]:
    """Where in its picture each drawn pixel lies, in pixels: [L,2,side]; the kernel's width [L,1]."""
    scale = torch.tensor([[-layer.scale if layer.flip else layer.scale, layer.scale] for layer in layers])
    centre = torch.tensor([layer.centre for layer in layers])
    box = box[[layer.index for layer in layers]]
    middle = (box[:, :2] + box[:, 2:]) / 2
    target = (start[:, :, None] + torch.arange(side) + 0.5) / size
    source = (target - centre[:, :, None]) / scale[:, :, None] + middle[:, :, None]
    return source * size - 0.5, (1 / scale[:, 1:]).clamp_min(1)


def _resample(pictures: Tensor, source: Tensor, width: Tensor) -> Tensor:
    """Read pictures [L,4,R,R] at ``source`` [L,2,side] with kernels of ``width`` [L,1]."""
    reach, side = pictures.shape[-1], source.shape[-1]
    across, down = (_weights(source[:, axis], width, reach) for axis in (0, 1))
    rows = pictures.transpose(1, 2).reshape(-1, reach * 4, reach)  # [L, y*4, x]
    rows = torch.bmm(rows, across.transpose(1, 2))  # [L, y*4, side]
    drawn = torch.bmm(down, rows.view(-1, reach, 4 * side))  # [L, side, 4*side]
    return drawn.view(-1, side, 4, side).transpose(1, 2)


def _weights(source: Tensor, width: Tensor, reach: int) -> Tensor:
    """The kernel's weights of ``reach`` pixels for positions ``source`` [L,side]: [L,side,reach]."""
    width = width[:, :, None]
    away = (source[:, :, None] - torch.arange(reach)).abs_().div_(width)
    # Keys' two cubic pieces as truncated powers: (r-1) r^2 / 2 + q^2 (1-2q), r = (2-x)+, q = (1-x)+
    outer = (2 - away).clamp_min_(0)
    inner = (1 - away).clamp_min_(0)
    weight = outer.square().mul_(outer.sub_(1)).mul_(0.5)
    weight.add_(inner.square().mul_(inner.mul_(-2).add_(1)))
    return weight.div_(width)


def premultiplied(image: Image.Image, size: int | None) -> np.ndarray:
    """RGBA -> uint8 [4,S,S], colours times alpha, so that averages of pixels are right."""
    picture = image.convert("RGBA").convert("RGBa")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
