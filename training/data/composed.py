"""Pictures that are composed on the way: icons, anew for every number or once for a pool."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from random import Random

import torch
from torch import Tensor

from unclip.config import ConfigError
from unclip.data.batches import Batch, Embedded, floats
from unclip.data.order import Order
from unclip.diffusion.noise import fold

from ..icons.captions import caption, styled
from ..icons.scenes import Scenes
from ..streams import Purpose, numbers, seed_of
from .config import DataConfig
from .feed import fed
from .framing import turned
from .kinds import Pictures
from .pool import Drawn, as_bytes, open_pool


class Composed(Pictures):
    """Icons in memory, of which every number is another scene."""

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int) -> None:
        if config.embeddings is not None:
            raise ConfigError(
                "icons are composed anew, and have no embeddings; data.embeddings needs data.kind: shards"
            )
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self.scenes = Scenes.load(config.shards, config.size, config.scenes, config.only)

    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        return (self._batch(numbers(k, n, self.rank, self.world)) for k in itertools.count(first, step))

    def _batch(self, mine: range) -> Batch:
        seeds = [seed_of(self.seed, Purpose.SAMPLE, number) for number in mine]
        scenes = self.scenes.each(seeds, crop=self.config.crop)
        rngs = [Random(seed_of(self.seed, Purpose.AUGMENT, number)) for number in mine]
        flip, rotate = self.config.flip, self.config.rotate
        image = [turned(image, flip, rotate, rng) for image, rng in zip(scenes.image, rngs, strict=True)]
        return Batch(torch.stack(image), scenes.caption, scenes.key)

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        for start in range(0, len(self.scenes), n):
            rows = range(start, min(start + n, len(self.scenes)))
            records = [self.scenes.records[row] for row in rows]
            rng = Random(fold(self.seed, start))
            captions = [caption(record, rng) for record in records]
            keys = [record["key"] for record in records]
            yield [record["name"] for record in records], Batch(self.scenes.pictures(rows), captions, keys)

    def held(self, batch: Batch, samples: Sequence[dict]) -> Batch:
        """With plain captions, which name the style; composed icons have no classes."""
        pairs = zip(samples, batch.caption, strict=True)
        named = [styled(one["record"]) if "name" in one["record"] else caption for one, caption in pairs]
        return replace(batch, caption=named, classes=None)


class Pooled(Pictures):
    """The first scenes of a composed kind, drawn once and kept; every one is seen once an epoch."""

    def __init__(
        self, config: DataConfig, seed: int, rank: int, world: int, kind: Callable[..., Pictures] = Composed
    ) -> None:
        self.config, self.rank, self.world = config, rank, world
        self._alone = partial(kind, config.model_copy(update={"pool": None, "heldout": []}), seed, 0, 1)
        depends = {"shards", "only", "crop", "flip", "rotate", "scenes"}
        facts = {"seed": seed, **config.model_dump(mode="json", include=depends)}
        if config.kind != "icons":  # pools were icons' alone once
            facts["kind"] = config.kind
        self.pool = open_pool(config.pool, config.crop or config.size, facts, self._drawn)
        self.count = len(self.pool)
        self.places = Order([self.count], self.count, seed)

    @cached_property
    def composed(self) -> Pictures:
        """What the pool was drawn from; slow to load, and seldom needed."""
        return self._alone()

    @property
    def scenes(self) -> Scenes | None:
        return self.composed.scenes

    def _drawn(self, start: int, n: int = 256) -> Iterator[Drawn]:
        """The scenes from number ``start`` on, in batches, for ever."""
        first = start // n
        batches = fed(partial(self.composed.every, n), first, self.config.workers)
        for number, batch in enumerate(batches, first):
            skip = max(0, start - number * n)
            yield as_bytes(batch.pixels[skip:]), batch.caption[skip:], batch.key[skip:]

    def embed(self, clip: str, embed: Callable[[Tensor], Tensor]) -> None:
        """Have batches come with embeddings: those of the CLIP of that identity, by ``embed``, which takes
        pictures float [n,3,S,S]; made once. ``ConfigError`` for a pool embedded by another CLIP.
        """
        self.embeds = self.pool.embedded(clip, lambda image: embed(floats(image)))

    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        return (self._batch(numbers(k, n, self.rank, self.world)) for k in itertools.count(first, step))

    def _batch(self, mine: range) -> Batch:
        rows = [self.places[number][1] for number in mine]
        captions, keys = ([texts[row] for row in rows] for texts in (self.pool.caption, self.pool.key))
        embedded = None if self.embeds is None else Embedded(self.embeds[rows])
        return Batch(self.pool.pictures(rows), captions, keys, embedded=embedded)

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        return self.composed.once(n)

    def held(self, batch: Batch, samples: Sequence[dict]) -> Batch:
        return self.composed.held(batch, samples)
