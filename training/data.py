"""Where a training program's pictures and captions come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from unclip.config import Config, ConfigError
from unclip.data.images import to_tensor
from unclip.data.shards import expand, read_shards
from unclip.diffusion.noise import fold

from .icons.captions import caption, styled
from .icons.scenes import Scenes, ScenesConfig


class DataConfig(Config):
    """Shards of captioned pictures.

    ``icons``: RGBA icons held in memory and composed on the fly; ``shards``: any pictures, streamed, or
    with ``hold`` or ``only`` held in memory as they are.
    """

    kind: Literal["icons", "shards"] = "shards"
    shards: list[str]                              # paths, globs or brace ranges to learn from
    heldout: list[str] = []                        # ... to validate on, never learnt from
    size: int = Field(gt=0)                        # pictures are made this high and wide
    crop: int | None = Field(None, gt=0)           # train on random windows of this size
    shuffle: int = Field(1_000, ge=0)              # samples in the shuffle buffer (streamed shards)
    hold: bool = False                             # read the shards once and keep them; for a few thousand
    only: list[str] = []                           # names (else captions) that are used; [] = all
    flip: float = Field(0.0, ge=0, le=1)           # training: chance to be mirrored, left to right
    rotate: float = Field(0.0, ge=0, le=1)         # training: chance to be turned by 90, 180 or 270 degrees
    scenes: ScenesConfig = ScenesConfig()          # how icons are composed


@dataclass(frozen=True)
class Batch:
    """Pictures float [N,3,S,S] in [-1,1], their captions, keys, and classes int64 [N] (-1 = none)."""

    image: Tensor
    caption: list[str]
    key: list[str]
    classes: Tensor | None = None  # None: they come from where there are no classes

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.image[part], self.caption[part], self.key[part],
                     None if self.classes is None else self.classes[part])


class Source:
    """Training batches by number, and the held-out pictures."""

    def __init__(self, config: DataConfig, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        for urls in (config.shards, config.heldout):
            if urls:
                expand(urls)  # a missing shard is an error now, not in an hour
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self.scenes = self.held = None
        if config.kind == "icons":
            self.scenes = Scenes.load(config.shards, config.size, config.scenes, config.only)
        elif config.hold or config.only:
            self.held = self._chosen(read_shards(config.shards))

    def batches(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches of ``n`` from number ``start`` on, for ever; they depend on (seed, rank, number) alone."""
        made = self._streamed(n, start) if self.scenes is None else self._composed(n, start)
        for number, batch in enumerate(made, start):
            generator = torch.Generator().manual_seed(fold(self.seed, self.rank, number, 1))
            yield replace(batch, image=turned(batch.image, self.config.flip, self.config.rotate, generator))

    def _composed(self, n: int, start: int) -> Iterator[Batch]:
        for number in itertools.count(start):
            made = self.scenes.batch(fold(self.seed, self.rank, number), n, crop=self.config.crop)
            yield Batch(made.image, made.caption, made.key)

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        """Every training picture once, as it is: names (else captions) and batches of ``n``."""
        if self.scenes is None:
            samples = iter(self._epoch(0))
            while chosen := list(itertools.islice(samples, n)):
                batch = stack(chosen, self.config.size)
                yield batch.caption, batch
            return
        for start in range(0, len(self.scenes), n):
            rows = range(start, min(start + n, len(self.scenes)))
            records = [self.scenes.records[row] for row in rows]
            rng = Random(fold(self.seed, start))
            yield [record["name"] for record in records], Batch(
                self.scenes.pictures(rows), [caption(record, rng) for record in records],
                [record["key"] for record in records])

    def _streamed(self, n: int, start: int) -> Iterator[Batch]:
        """Epoch after epoch over the shards, each in its own order; every rank takes its share."""
        samples = itertools.chain.from_iterable(self._epoch(epoch) for epoch in itertools.count())
        mine = itertools.islice(samples, self.rank + start * n * self.world, None, self.world)
        while True:
            chosen = list(itertools.islice(mine, n))
            yield stack(chosen, self.config.size, self.config.crop,
                        torch.Generator().manual_seed(fold(self.seed, self.rank, start)))
            start += 1

    def _epoch(self, epoch: int) -> Iterator[dict]:
        if self.held is not None:
            yield from Random(fold(self.seed, epoch)).sample(self.held, len(self.held))
            return
        empty = True
        for sample in read_shards(self.config.shards, shuffle=self.config.shuffle,
                                  seed=fold(self.seed, epoch)):
            empty = False
            yield sample
        if empty:
            raise ConfigError(f"no usable sample in {self.config.shards}")

    def _wants(self, sample: dict) -> bool:
        return not self.config.only or _name(sample) in self.config.only

    def _chosen(self, samples: Iterator[dict]) -> list[dict]:
        """The samples with the names of ``only``; ``ConfigError`` for a name that none has."""
        chosen = [sample for sample in samples if self._wants(sample)]
        if missing := set(self.config.only) - {_name(sample) for sample in chosen}:
            raise ConfigError(f"no picture in {self.config.shards} is called {', '.join(sorted(missing))}")
        return chosen

    def heldout(self, limit: int) -> Batch | None:
        """Up to ``limit`` held-out pictures with plain captions, always the same; None if there are none."""
        if not self.config.heldout:
            return None
        samples = read_shards(self.config.heldout, shuffle=10_000, seed=0)
        samples = list(itertools.islice((s for s in samples if self._wants(s)), limit))
        if not samples:
            return None
        batch = stack(samples, self.config.size, self.config.crop, torch.Generator().manual_seed(0))
        if self.config.kind == "icons":
            batch = replace(batch, caption=[styled(s["record"]) for s in samples])
        return batch


def stack(
    samples: list[dict],
    size: int,
    crop: int | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """Centre-crop to a square, resize to ``size``, and cut random windows of ``crop`` if asked.

    samples: as ``read_shards`` yields them; the integer "class" of a record is the picture's class.
    """
    images = torch.stack([to_tensor(_square(s["image"], size)) for s in samples])
    if crop is not None and crop < size:
        corners = torch.randint(0, size - crop + 1, (len(samples), 2), generator=generator).tolist()
        images = torch.stack([image[:, y:y + crop, x:x + crop]
                              for image, (y, x) in zip(images, corners, strict=True)])
    return Batch(images, [s["caption"] for s in samples], [s["key"] for s in samples],
                 torch.tensor([_class(s) for s in samples]))


def turned(images: Tensor, flip: float, rotate: float, generator: torch.Generator) -> Tensor:
    """[N,C,S,S], each mirrored (left to right) and turned (by 90, 180 or 270 degrees) on its own chance.

    A turn of 180 degrees puts a picture upside down; chances of 0.5 and 0.75 make all eight symmetries of
    the square alike.
    """
    if not flip and not rotate:
        return images
    n = len(images)
    mirror = torch.rand(n, generator=generator) < flip
    quarters = torch.randint(1, 4, (n,), generator=generator)
    quarters *= torch.rand(n, generator=generator) < rotate
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    return torch.stack([image.rot90(k, (1, 2)) for image, k in zip(images, quarters.tolist(), strict=True)])


def _name(sample: dict) -> str:
    return sample["record"].get("name", sample["caption"])


def _class(sample: dict) -> int:
    number = sample["record"].get("class", -1)
    if not isinstance(number, int) or number < -1:
        raise ConfigError(f"the class of {sample['key']} is {number!r}; it must be an integer from 0 on")
    return number


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
