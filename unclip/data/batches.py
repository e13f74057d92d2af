"""Samples as one batch: pictures, captions, classes, and what was embedded of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import ConfigError
from .pictures import square
from .samples import class_of


@dataclass(frozen=True)
class Batch:
    """Pictures [N,3,S,S], their captions, keys, and classes int64 [N] (-1 = none).

    pixels: uint8, as they were read and as processes hand them on, or floats in [-1,1], as they are composed.
    embedded: what ``data.embeddings`` holds of them; None without that.
    corrupt: (key, reason) of the samples that could not be read; their successors stand in for them.
    """

    pixels: Tensor
    caption: list[str]
    key: list[str]
    classes: Tensor | None = None  # None: they come from where there are no classes
    embedded: Embedded | None = None
    corrupt: tuple[tuple[str, str], ...] = ()

    @cached_property
    def image(self) -> Tensor:
        """The pictures as float32 in [-1,1]."""
        return floats(self.pixels)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(
            self.pixels[part],
            self.caption[part],
            self.key[part],
            None if self.classes is None else self.classes[part],
            None if self.embedded is None else self.embedded[part],
        )


def stack(samples: Sequence[dict], size: int, crop: int | None = None, background: str = "white") -> Batch:
    """The square in the middle of each picture, resized to ``size``; random windows of ``crop`` if asked.

    samples: as ``read_shards`` yields them; the integer "class" of a record is the picture's class. The
    windows are always the same.
    """
    rng = Random(0)
    images = [window(pixels(square(s["image"], size, background=background)), crop, rng) for s in samples]
    return Batch(
        torch.stack(images),
        [s["caption"] for s in samples],
        [s["key"] for s in samples],
        torch.tensor([class_of(s["record"], s["key"]) for s in samples]),
    )


def padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states of several captions, each [L,W], as float32 [N,L,W] with a mask bool [N,L]."""
    lengths = torch.tensor([len(one) for one in states])
    tokens = torch.nn.utils.rnn.pad_sequence([one.float() for one in states], batch_first=True)
    return tokens, torch.arange(tokens.shape[1])[None] < lengths[:, None]


def pixels(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3,H,W]."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def floats(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]; what is that already stays as it is."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def classes_of(batch: Batch, known: int) -> Tensor:
    """Classes int64 [N] of pictures, of which 0 to ``known`` - 1 are allowed; else ``ConfigError``."""
    if batch.classes is None:
        raise ConfigError("this stage takes classes, which composed icons have not; use data.kind: shards")
    for key, number in zip(batch.key, batch.classes.tolist(), strict=True):
        if not 0 <= number < known:
            raise ConfigError(
                f"this stage takes classes 0 to {known - 1}; the record of {key} has "
                + ("none" if number < 0 else f"{number}")
            )
    return batch.classes


def shrink(picture: Tensor, size: int) -> Tensor:
    """[N,3,S,S] -> [N,3,size,size] by the mean of each cell (exact for whole factors)."""
    if picture.shape[-1] == size:
        return picture
    return F.interpolate(picture, size=(size, size), mode="area")


class Looked(NamedTuple):
    """What was embedded of one sample: its picture [D], a caption [D], that one's hidden states [L,W], and
    the picture's latents [C,h,w]; None of what is not kept.
    """

    image: Tensor
    text: Tensor
    states: Tensor | None = None
    latents: Tensor | None = None


@dataclass(frozen=True)
class Embedded:
    """Of a batch: embeddings of pictures and captions [N,D], and the captions' hidden states [N,L,W] with
    their mask [N,L], and the pictures' latents [N,C,h,w]; None of what is not kept.
    """

    image: Tensor
    text: Tensor | None = None  # a pool's captions are not embedded
    tokens: Tensor | None = None
    mask: Tensor | None = None
    latents: Tensor | None = None

    def __getitem__(self, part: slice) -> Embedded:
        rest = (self.text, self.tokens, self.mask, self.latents)
        return Embedded(self.image[part], *(None if x is None else x[part] for x in rest))


def gathered(embedded: Sequence[Looked]) -> Embedded:
    """What was embedded of single samples, as one batch."""
    image, text = torch.stack([one.image for one in embedded]), torch.stack([one.text for one in embedded])
    states = [one.states for one in embedded if one.states is not None]
    tokens, mask = padded(states) if len(states) == len(embedded) else (None, None)
    latents = [one.latents for one in embedded if one.latents is not None]
    kept = torch.stack(latents) if len(latents) == len(embedded) else None
    return Embedded(image, text, tokens, mask, kept)


def window(image: Tensor, side: int | None, rng: Random) -> Tensor:
    """A random window [C,side,side] of [C,S,S]; None: all of it."""
    if not side or side >= image.shape[-1]:
        return image
    room = image.shape[-1] - side
    y, x = rng.randint(0, room), rng.randint(0, room)
    return image[:, y : y + side, x : x + side]
