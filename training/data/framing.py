"""From a sample to what is learnt of it: a square of its picture, one of its captions, its class."""

from __future__ import annotations

from random import Random

from torch import Tensor


def framing(random_crop: float | None, rng: Random) -> tuple[float, tuple[float, float]]:
    """Which square of a picture: its side as a share of the shorter side, and where it lies (0 to 1).

    None: the largest one, in the middle. A share s: a side between s and 1 of the shorter side, anywhere
    (guided-diffusion's random crop has s = 0.8).
    """
    if random_crop is None:
        return 1.0, (0.5, 0.5)
    return rng.uniform(random_crop, 1.0), (rng.random(), rng.random())


def turned(image: Tensor, flip: float, rotate: float, rng: Random) -> Tensor:
    """[C,S,S], mirrored (left to right) and turned (by 90, 180 or 270 degrees) by chance.

    A turn of 180 degrees puts a picture upside down; chances of 0.5 and 0.75 make all eight symmetries of
    the square alike.
    """
    if flip and rng.random() < flip:
        image = image.flip(2)
    if rotate and rng.random() < rotate:
        image = image.rot90(rng.randint(1, 3), (1, 2))
    return image
