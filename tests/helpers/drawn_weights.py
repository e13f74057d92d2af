"""The random weights of the public code's networks in tests/fixtures, drawn again from their seeds.

They were drawn by ``torch.manual_seed`` and ``torch.randn``, parameter after parameter, times a scale, and
kept as bfloat16. Torch promises no bits of its numbers, so they are made here by the same steps on the
integers of the Mersenne Twister (Matsumoto & Nishimura 1998), in float64: alike on every processor.
The few that torch's own float32 had rounded to a neighbour are listed in the recipe.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor


class Normals:
    """Standard normal numbers as ``torch.randn`` draws them on a CPU after ``torch.manual_seed(seed)``."""

    def __init__(self, seed: int) -> None:
        self._engine = np.random.RandomState(seed)._bit_generator

    def __call__(self, n: int) -> np.ndarray:
        """float64 [n] (Box & Muller 1958)."""
        return self._many(n) if n >= 16 else self._few(n)

    def _many(self, n: int) -> np.ndarray:
        """Sixteen at a time; if some are left over, the last sixteen are drawn anew."""
        uniform = self._uniform(n)
        normal = np.empty(n)
        normal[: n // 16 * 16] = self._pairs(uniform[: n // 16 * 16])
        if n % 16:
            normal[-16:] = self._pairs(self._uniform(16))
        return normal

    def _uniform(self, n: int) -> np.ndarray:
        return (self._engine.random_raw(n) & 0xFFFFFF) / 2**24

    @staticmethod
    def _pairs(uniform: np.ndarray) -> np.ndarray:
        first, second = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
        radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).flatten()

    def _few(self, n: int) -> np.ndarray:
        """By pairs of 53 bits. Of an odd number torch keeps the other for later; there is none here."""
        raw = self._engine.random_raw(-(-n // 2) * 4).reshape(-1, 2)
        bits = raw[:, 0] << np.uint64(32) | raw[:, 1]
        angle, first = ((bits & np.uint64(2**53 - 1)) / 2**53).reshape(-1, 2).T
        radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * angle
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).flatten()[:n]


def drawn(recipe: str) -> dict[str, Tensor]:
    """The weights of a recipe, bfloat16 by name.

    recipe: JSON of a list of {"seed", "weights": [[name, shape, mean, scale], ...] in the order in which they
    were drawn (scale None: one by the square root of the inputs), "rounded": {name: {place: value}}}.
    """
    weights = {}
    for part in json.loads(recipe):
        normals = Normals(part["seed"])
        for name, shape, mean, scale in part["weights"]:
            size = int(np.prod(shape))
            factor = np.prod(shape[1:]) ** -0.5 if scale is None else scale
            values = torch.from_numpy(mean + factor * normals(size)).float().bfloat16()
            for place, value in part["rounded"].get(name, {}).items():
                values[int(place)] = value
            weights[name] = values.view(shape)
    return weights
