"""The random numbers of a run: one stream a picture, whichever process handles it, in whichever batch.

The pictures that a run sees are numbered, over all processes. Process r of w takes every w-th: its batch k
of n pictures holds the numbers (k n + i) w + r. So an optimiser step sees the same pictures with the same
noise however many processes share it, and whether or not it is taken in parts.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from unclip.diffusion.noise import Counted, Noise, fold


class Purpose(IntEnum):
    """What a picture's random numbers are for; each has a stream of its own."""

    SAMPLE = 0  # which sample it is, and how it is composed
    AUGMENT = 1  # how it is cut, mirrored and turned
    CORRUPT = 2  # what is done to a low-resolution picture
    LOSS = 3  # its t, its noise and what is left out


def numbers(batch: int, n: int, rank: int, world: int) -> range:
    """The numbers of the ``n`` pictures in batch number ``batch`` of process ``rank`` of ``world``."""
    return range(batch * n * world + rank, (batch + 1) * n * world, world)


def seed_of(seed: int, purpose: Purpose, number: int) -> int:
    """The seed of a picture's stream: that of the run, with what it is for and the picture's number."""
    return fold(seed, 0, 0, int(purpose), number)


def streams(seed: int, purpose: Purpose, pictures: range, device: str | torch.device = "cpu") -> Noise:
    """The streams of ``pictures``. A GPU draws its own: there are too many numbers to carry over."""
    kind = Noise if torch.device(device).type == "cpu" else Counted
    return kind([seed_of(seed, purpose, number) for number in pictures], device)
