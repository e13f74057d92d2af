"""Where a training program's pictures and captions come from."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from unclip.config import ConfigError
from unclip.data.batches import Batch, stack
from unclip.data.reading import ShardError, expand, read_shards

from ..icons.scenes import Scenes
from .composed import Composed, Pooled
from .config import DataConfig
from .feed import fed
from .kinds import Pictures
from .pool import Pool
from .shards import from_shards, wanted

# Kinds of pictures by the name that ``data.kind`` calls them, each made from (config, seed, rank, world).
KINDS: dict[str, Callable[..., Pictures]] = {"icons": Composed, "shards": from_shards}


def source_of(config: DataConfig, seed: int = 0, rank: int = 0, world: int = 1) -> Pictures:
    """The pictures that a recipe names; ``ConfigError`` for a kind that nobody has entered."""
    kind = KINDS.get(config.kind)
    if kind is None:
        raise ConfigError(f"data.kind is {config.kind!r}; there are {', '.join(sorted(KINDS))}")
    if config.pool is None:
        return kind(config, seed, rank, world)
    if kind is from_shards:
        raise ConfigError("data.pool keeps composed scenes, which data.kind: icons alone has")
    return Pooled(config, seed, rank, world, kind)


class Source:
    """Training batches by number, and the held-out pictures.

    order: what the order of the batches depends on besides the seed: nothing for shards on disk; the
    numbers of processes and of data workers for URLs and compressed tars, which are dealt out to them.
    """

    def __init__(self, config: DataConfig, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if config.heldout:
            expand(config.heldout)  # a missing shard is an error now, not in an hour
        self.config, self.seed = config, seed
        self.pictures = source_of(config, seed, rank, world)
        self.seen, self.corrupt = 0, {}

    @property
    def order(self) -> dict[str, int]:
        return self.pictures.order

    @property
    def listing(self) -> dict[str, int | None]:
        """The files that are learnt from, and their bytes; None for what is at an address."""
        return self.pictures.listing

    @property
    def scenes(self) -> Scenes | None:
        """The icons in memory; None for other pictures."""
        return self.pictures.scenes

    @property
    def pool(self) -> Pool | None:
        """Scenes that are kept, and then only read; None for other pictures."""
        return self.pictures.pool

    @property
    def embeds(self) -> Tensor | None:
        """The embeddings of a pool's scenes, float32 [M,D], once it was embedded."""
        return self.pictures.embeds

    def embed(self, clip: str, embed: Callable[[Tensor], Tensor]) -> None:
        """Have a pool's batches come with embeddings; see ``Pooled.embed``."""
        self.pictures.embed(clip, embed)

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        """Every training picture once, as it is: names (else captions) and batches of ``n``."""
        return self.pictures.once(n)

    def batches(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches of ``n`` from number ``start`` on, for ever.

        The pictures are numbered over all processes (``streams.numbers``), and each depends on (seed,
        number) alone, but for what ``order`` says. Those before ``start`` are not decoded.
        """
        for batch in fed(partial(self.pictures.every, n), start, self.config.workers):
            self._watch(batch)
            yield batch

    def _watch(self, batch: Batch) -> None:
        """Tell of each unreadable sample once; ``ShardError`` when they are more than the share allowed."""
        self.seen += len(batch.key)
        for key, reason in batch.corrupt:
            if key not in self.corrupt:
                print(f"skipped {key}: {reason}", file=sys.stderr)
            self.corrupt[key] = self.corrupt.get(key, 0) + 1
        if not batch.corrupt:
            return
        lost, of = sum(self.corrupt.values()), max(self.seen, min(1_000, self.pictures.count or 1_000))
        if lost > self.config.max_corrupt * of:
            raise ShardError(
                f"{lost} of {of} samples cannot be read ({key}: {reason}), more than data."
                f"max_corrupt {self.config.max_corrupt}; look with python -m training.doctor"
            )

    def heldout(self, limit: int) -> Batch | None:
        """Up to ``limit`` held-out pictures with plain captions, always the same; None if there are none."""
        if not self.config.heldout:
            return None
        shuffled = read_shards(self.config.heldout, shuffle=10_000, seed=0)
        samples = list(itertools.islice(wanted(shuffled, self.config), limit))
        if not samples:
            return None
        return self.pictures.held(stack(samples, self.config.size, self.config.crop), samples)
