"""Sources of pictures of 8 pixels, from shards that are shuffled, and the batches of them."""

from __future__ import annotations

import itertools

from training.data.config import DataConfig
from training.data.source import Source


def source(shards: object, rank: int = 0, world: int = 1, seed: int = 3, **config: object) -> Source:
    config = {"shards": [str(path) for path in shards], "size": 8, "shuffle": 4, **config}
    return Source(DataConfig(**config), seed, rank, world)


def first(source: Source, n: int, count: int = 1, start: int = 0) -> list:
    """So many batches of ``n``, from number ``start`` on."""
    return list(itertools.islice(source.batches(n, start), count))


def keys(batches: list) -> list[str]:
    return [key for batch in batches for key in batch.key]
