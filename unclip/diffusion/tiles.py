"""Pictures beyond a network's size: every prediction is a mean of overlapping tiles' (MultiDiffusion)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise, Prediction
from .schedule import Schedule


class Tile(NamedTuple):
    """A square of a picture: the picture's number, and the square's first row and column."""

    picture: int
    top: int
    left: int


class Tiles:
    """Squares of ``side`` pixels that cover pictures [N,...,H,W], each over a quarter of the next or more.

    Where several lie over a pixel, they count by sin^2 windows that end in 0 at a tile's border, divided
    by their sum: all shares change little from one pixel to the next, so that no border can be seen.

    unit: tiles begin at multiples of it, as those of H and W must be; of a smaller picture, a pixel's width.
    """

    def __init__(self, n: int, height: int, width: int, side: int, unit: int = 1) -> None:
        tops, lefts = (
            [unit * at for at in places(length // unit, side // unit)] for length in (height, width)
        )
        self.side = side
        self.tiles = [Tile(*one) for one in product(range(n), tops, lefts)]
        rise = ((torch.arange(side, dtype=torch.float64) + 0.5) * (math.pi / side)).sin().square()
        self.window = (rise[:, None] * rise).float()  # [side, side]
        self.total = torch.zeros(n, 1, height, width)
        for tile in self.tiles:
            self._part(self.total, tile).add_(self.window)

    def _part(self, value: Tensor, tile: Tile) -> Tensor:
        rows, columns = (slice(start, start + self.side) for start in tile[1:])
        return value[tile.picture, ..., rows, columns]

    def cut(self, value: Tensor, tiles: Sequence[Tile]) -> Tensor:
        """Tiles [T,...,side,side] of pictures [N,...,H,W]."""
        return torch.stack([self._part(value, tile) for tile in tiles])

    def denoise(self, of: Callable[[Sequence[Tile]], Denoise], schedule: Schedule, most: int = 16) -> Denoise:
        """The denoise of whole pictures that comes nearest to those of their tiles, by these shares.

        Bar-Tal et al. 2023 (MultiDiffusion), eq. 5; of x0, in which a sampler's step is linear, so that any
        sampler may walk, with one noise of the whole picture. The variance is such a mean as well.

        of: the denoise of some tiles. most: tiles at a time, which bounds the memory.
        """

        groups = [self.tiles[start : start + most] for start in range(0, len(self.tiles), most)]
        parts = [of(some) for some in groups]  # once, since guidance may remember the levels before

        def denoise(x: Tensor, t: Tensor) -> Prediction:
            x0, frac = torch.zeros_like(x), torch.zeros_like(x)
            varies: float | None = None
            for some, part in zip(groups, parts, strict=True):
                out = part(self.cut(x, some), t[[tile.picture for tile in some]])
                self._add(x0, some, out.x0)
                if isinstance(out.frac, Tensor):
                    self._add(frac, some, out.frac)
                else:
                    varies = out.frac
            total = self.total.to(x)
            return Prediction.from_x0(
                x, x0 / total, schedule.at(t), frac / total if varies is None else varies
            )

        return denoise

    def _add(self, whole: Tensor, tiles: Sequence[Tile], values: Tensor) -> None:
        for tile, value in zip(tiles, self.window.to(values) * values, strict=True):
            self._part(whole, tile).add_(value)


def places(length: int, side: int) -> list[int]:
    """Where tiles of ``side`` begin that cover ``length``, evenly and with a quarter of them in common;
    ``ValueError`` for a length below ``side``."""
    if length < side:
        raise ValueError(f"{length} pixels are less than a tile of {side}")
    steps = math.ceil((length - side) / (side - side // 4))
    return [round(k * (length - side) / steps) for k in range(steps)] + [length - side]
