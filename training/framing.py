"""From a sample to what is learnt of it: a square of its picture, one of its captions, its class."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.config import ConfigError


def framing(random_crop: float | None, rng: Random) -> tuple[float, tuple[float, float]]:
    """Which square of a picture: its side as a share of the shorter side, and where it lies (0 to 1).

    None: the largest one, in the middle. A share s: a side between s and 1 of the shorter side, anywhere
    (guided-diffusion's random crop has s = 0.8).
    """
    if random_crop is None:
        return 1.0, (0.5, 0.5)
    return rng.uniform(random_crop, 1.0), (rng.random(), rng.random())


def pixels(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3,H,W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def window(image: Tensor, side: int | None, rng: Random) -> Tensor:
    """A random window [C,side,side] of [C,S,S]; None: all of it."""
    room = image.shape[-1] - (side or image.shape[-1])
    if room <= 0:
        return image
    y, x = rng.randint(0, room), rng.randint(0, room)
    return image[:, y:y + side, x:x + side]


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


def floats(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def class_of(record: dict, key: str) -> int:
    """The integer "class" of a record, -1 for none; ``ConfigError`` for what is no class."""
    number = record.get("class", -1)
    if isinstance(number, bool) or not isinstance(number, int) or number < -1:
        raise ConfigError(f"the class of {key} is {number!r}; it must be an integer from 0 on")
    return number
