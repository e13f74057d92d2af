"""The degradation of BSRGAN: blur, resizing, noise and JPEG, in an order that chance has.

Zhang et al. 2021, "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution"
(arXiv:2103.14006), section 3; but for the noise of a camera's sensor, which takes a model of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import Random, rand, randn
from .jpeg import jpeg

T = TypeVar("T")

LEAST = 16  # height and width in pixels of what it makes: a kernel of 21 pixels is mirrored at its edges
DRAWS = 64  # uniform numbers a picture, more than it takes
SIZES = range(7, 22, 2)  # of kernels, in pixels
MODES = ("nearest-exact", "bilinear", "bicubic", "area")  # that make smaller; the last three make larger too
LEVELS = (1 / 255, 25 / 255)  # standard deviations of noise, of pixels in [0,1]
QUALITIES = (30, 95)  # of JPEG


def bsr(pictures: Tensor, factor: int, source: Random = None) -> Tensor:
    """Pictures [N,3,H,W] in [-1,1] -> [N,3,H/factor,W/factor], each spoilt in a way of its own.

    What happens to a picture depends on its stream alone. Raises ``ValueError`` for sides that ``factor``
    does not divide, or of which it makes less than ``LEAST`` pixels.
    """
    height, width = pictures.shape[2:]
    if height % factor or width % factor or min(height, width) < LEAST * factor:
        raise ValueError(
            f"BSR makes pictures of at least {LEAST} pixels, by a factor that divides their sides; not by "
            f"{factor} of {width}x{height}"
        )
    numbers = rand((len(pictures), DRAWS), pictures.device, source).tolist()
    noise = randn(pictures.shape, pictures.device, source)
    parts = zip(pictures, numbers, noise, strict=True)
    return torch.stack([spoilt(one, factor, Dice(own), hiss) for one, own, hiss in parts])


class Dice:
    """Uniform numbers in [0,1), made to choose by; each is used once."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def whole(self, low: int, high: int) -> int:
        """low to high, both included."""
        return low + int((high - low + 1) * next(self._numbers))

    def happens(self, chance: float) -> bool:
        return next(self._numbers) < chance

    def one_of(self, things: Sequence[T]) -> T:
        return things[self.whole(0, len(things) - 1)]

    def shuffled(self, things: Sequence[T]) -> list[T]:
        order = sorted((next(self._numbers), place) for place in range(len(things)))
        return [things[place] for _, place in order]


def spoilt(picture: Tensor, factor: int, dice: Dice, noise: Tensor) -> Tensor:
    """One picture [3,H,W] in [-1,1] -> [3,H/factor,W/factor]; noise: Gaussian [3,H,W].

    A blur of round kernels, one of oblong ones, the resizing, noise, and JPEG three times in four come in any
    order; JPEG comes last again. By 4, a quarter of the pictures are halved before.
    """
    smaller = (picture.shape[1] // factor, picture.shape[2] // factor)
    if factor == 4 and dice.happens(0.25):
        factor = 2
        picture = resized(picture, [2 * side for side in smaller], dice.one_of(MODES[1:]))
    is_squeezed = dice.happens(0.75)
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: blurred(x, isotropic(dice, factor)),
        lambda x: blurred(x, anisotropic(dice, factor)),
        lambda x: shrunk(x, smaller, factor, dice),
        lambda x: noisy(x, dice, noise),
    ]
    if is_squeezed:
        steps.append(lambda x: jpeg(x, dice.whole(*QUALITIES)))
    for step in dice.shuffled(steps):
        picture = step(picture).clamp(-1, 1)
    return jpeg(picture, dice.whole(*QUALITIES))


def gaussian(size: int, covariance: Tensor) -> Tensor:
    """The kernel [size,size] of a Gaussian with this covariance [2,2] in pixels, of sum 1."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    at = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)  # [size,size,2] of (x, y)
    weight = torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", at, covariance.double().inverse(), at))
    return (weight / weight.sum()).float()


def isotropic(dice: Dice, factor: int) -> Tensor:
    """A round kernel, of sigma 0.1 to 2.4 pixels by 2 and 2.8 by 4."""
    sigma = dice.between(0.1, 2 + 0.2 * factor)
    return gaussian(dice.one_of(SIZES), sigma**2 * torch.eye(2))


def anisotropic(dice: Dice, factor: int) -> Tensor:
    """An oblong kernel at any angle; the eigenvalues of its covariance are 0.5 to 6 by 2 and 8 by 4."""
    angle = dice.between(0, math.pi)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    axes = torch.tensor([dice.between(0.5, 4 + factor) for _ in range(2)])
    return gaussian(dice.one_of(SIZES), turn @ axes.diag() @ turn.T)


def blurred(picture: Tensor, kernel: Tensor) -> Tensor:
    """[3,H,W], mirrored at its edges."""
    reach = len(kernel) // 2
    padded = F.pad(picture[None], (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.to(picture).expand(3, 1, -1, -1), groups=3)[0]


def resized(picture: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """[3,H,W] -> [3,*size], without a filter of its own but that of ``area``, as OpenCV does it."""
    corners = False if mode in ("bilinear", "bicubic") else None
    return F.interpolate(picture[None], size=tuple(size), mode=mode, align_corners=corners)[0]


def shrunk(picture: Tensor, size: Sequence[int], factor: int, dice: Dice) -> Tensor:
    """Resized at once, or (one in five) over another size: by factor / a, then by a of 1/2 to factor."""
    if not dice.happens(0.2):
        return resized(picture, size, dice.one_of(MODES))
    over = dice.between(0.5, factor)
    between = [max(1, round(over * side)) for side in size]
    return resized(resized(picture, between, dice.one_of(MODES[1:])), size, dice.one_of(MODES[1:]))


def noisy(picture: Tensor, dice: Dice, noise: Tensor) -> Tensor:
    """Noise in each channel (two in five), the same in all (two), or correlated between them (one)."""
    sigma = 2 * dice.between(*LEVELS)  # of pixels in [-1,1]
    noise = noise[:, : picture.shape[1], : picture.shape[2]]
    kind = dice.between(0, 5)
    if kind >= 4:
        noise = torch.tensordot(correlation(dice).to(noise), noise, dims=1)
    elif kind >= 2:
        noise = noise[:1]
    return picture + sigma * noise


def correlation(dice: Dice) -> Tensor:
    """[3,3], which gives noise of three channels a covariance of eigenvalues 0 to 1, in any direction."""
    turn, _ = torch.linalg.qr(torch.tensor([dice.between(-1, 1) for _ in range(9)]).view(3, 3))
    return turn @ torch.tensor([dice.between(0, 1) ** 0.5 for _ in range(3)]).diag()
