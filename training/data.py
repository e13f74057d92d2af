"""Where a training program's pictures and captions come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from unclip.config import Config, ConfigError
from unclip.data.images import to_tensor
from unclip.data.shards import expand, read_shards
from unclip.diffusion.noise import fold

from .icons.captions import styled
from .icons.scenes import Scenes, ScenesConfig


class DataConfig(Config):
    """Shards of captioned pictures.

    ``icons``: RGBA icons held in memory and composed on the fly; ``shards``: any pictures, streamed.
    """

    kind: Literal["icons", "shards"] = "shards"
    shards: list[str]                              # paths, globs or brace ranges to learn from
    heldout: list[str] = []                        # ... to validate on, never learnt from
    size: int = Field(gt=0)                        # pictures are made this high and wide
    crop: int | None = Field(None, gt=0)           # train on random windows of this size
    shuffle: int = Field(1_000, ge=0)              # samples in the shuffle buffer (streamed shards)
    scenes: ScenesConfig = ScenesConfig()          # how icons are composed


@dataclass(frozen=True)
class Batch:
    """Pictures float [N,3,S,S] in [-1,1], their captions and keys."""

    image: Tensor
    caption: list[str]
    key: list[str]


class Source:
    """Training batches by number, and the held-out pictures."""

    def __init__(self, config: DataConfig, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        for urls in (config.shards, config.heldout):
            if urls:
                expand(urls)  # a missing shard is an error now, not in an hour
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self.scenes = None
        if config.kind == "icons":
            self.scenes = Scenes.load(config.shards, config.size, config.scenes)

    def batches(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches of ``n`` from number ``start`` on, for ever; they depend on (seed, rank, number) alone."""
        if self.scenes is not None:
            for number in itertools.count(start):
                made = self.scenes.batch(fold(self.seed, self.rank, number), n, crop=self.config.crop)
                yield Batch(made.image, made.caption, made.key)
        else:
            yield from self._streamed(n, start)

    def _streamed(self, n: int, start: int) -> Iterator[Batch]:
        """Epoch after epoch over the shards, each in its own order; every rank takes its share."""
        samples = itertools.chain.from_iterable(self._epoch(epoch) for epoch in itertools.count())
        mine = itertools.islice(samples, self.rank + start * n * self.world, None, self.world)
        while True:
            chosen = list(itertools.islice(mine, n))
            yield _stack(chosen, self.config.size, self.config.crop,
                         torch.Generator().manual_seed(fold(self.seed, self.rank, start)))
            start += 1

    def _epoch(self, epoch: int) -> Iterator[dict]:
        empty = True
        for sample in read_shards(self.config.shards, shuffle=self.config.shuffle,
                                  seed=fold(self.seed, epoch)):
            empty = False
            yield sample
        if empty:
            raise ConfigError(f"no usable sample in {self.config.shards}")

    def heldout(self, limit: int) -> Batch | None:
        """Up to ``limit`` held-out pictures with plain captions, always the same; None if there are none."""
        if not self.config.heldout:
            return None
        samples = list(itertools.islice(read_shards(self.config.heldout, shuffle=10_000, seed=0), limit))
        if not samples:
            return None
        batch = _stack(samples, self.config.size, self.config.crop, torch.Generator().manual_seed(0))
        if self.config.kind == "icons":
            batch = Batch(batch.image, [styled(s["record"]) for s in samples], batch.key)
        return batch


def _stack(samples: list[dict], size: int, crop: int | None, generator: torch.Generator) -> Batch:
    """Centre-crop to a square, resize to ``size``, and cut random windows of ``crop`` if asked."""
    images = torch.stack([to_tensor(_square(s["image"], size)) for s in samples])
    if crop is not None and crop < size:
        corners = torch.randint(0, size - crop + 1, (len(samples), 2), generator=generator).tolist()
        images = torch.stack([image[:, y:y + crop, x:x + crop]
                              for image, (y, x) in zip(images, corners, strict=True)])
    return Batch(images, [s["caption"] for s in samples], [s["key"] for s in samples])


def _square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, ``size`` pixels high; transparency on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if image.size == (size, size):
        return image.convert("RGB")
    return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
