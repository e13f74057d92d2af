"""Pictures out of shards: by number where they lie on a disk or in memory, else as they come."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from unclip.config import ConfigError
from unclip.data.addresses import is_address
from unclip.data.batches import Batch, stack
from unclip.data.indexed import Indexed, on_disk
from unclip.data.lanes import Lane
from unclip.data.order import Order
from unclip.data.pictures import square
from unclip.data.reading import ShardError, expand, read_shards
from unclip.diffusion.noise import fold

from ..streams import numbers
from .config import DataConfig
from .counts import counts_of
from .kinds import Pictures
from .reader import Example, Reader, batch_of


def from_shards(config: DataConfig, seed: int, rank: int, world: int) -> Pictures:
    """The kind that fits the shards: held in memory, read by number, or dealt out to readers."""
    if config.hold or config.only:
        return Held(config, seed, rank, world)
    if all(map(on_disk, expand(config.shards))):
        return Numbered(config, seed, rank, world)
    return Dealt(config, seed, rank, world)


class FromShards(Pictures):
    """What all of them share: a reader, and the way through every picture."""

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int) -> None:
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self.paths = expand(config.shards)
        self.listing = {path: None if is_address(path) else os.path.getsize(path) for path in self.paths}
        self.reader = Reader(config, seed)
        if self.reader.embeddings is not None:  # those that are missing are an error now
            self.reader.embeddings.names([*config.shards, *config.heldout])

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        samples = self._each()
        while chosen := list(itertools.islice(samples, n)):
            batch = stack(chosen, self.config.size, background=self.config.background)
            yield batch.caption, batch

    def _each(self) -> Iterator[dict]:
        return wanted(read_shards(self.paths), self.config)

    def held(self, batch: Batch, samples: Sequence[dict]) -> Batch:
        """With what was embedded of them."""
        return (
            batch
            if self.reader.embeddings is None
            else replace(batch, embedded=self.reader.embedded(samples))
        )


class Numbered(FromShards):
    """Shards on disk, any sample of which is read alone."""

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int) -> None:
        super().__init__(config, seed, rank, world)
        self.samples = self._samples()
        self.places = self._order()
        self.count = len(self.places)

    def _samples(self) -> Indexed:
        return Indexed(self.paths)

    def _order(self) -> Order:
        """The order of the samples, which are counted first."""
        counts = counts_of(self.paths, quiet=self.rank > 0)
        empty = [path for path, count in zip(self.paths, counts, strict=True) if not count]
        for path in empty if self.rank == 0 else ():
            reasons = "; ".join(reason for _, reason in self.samples.index(path).problems)
            print(f"{path}: {reasons or 'empty'}", file=sys.stderr)
        if not sum(counts):
            raise ShardError(f"no sample can be read from {', '.join(self.paths[:3])}")
        return Order(counts, self.config.shuffle, self.seed)

    def _sample(self, place: int) -> dict:
        return self.samples[self.places[place]]

    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        return (self._batch(numbers(k, n, self.rank, self.world)) for k in itertools.count(first, step))

    def _batch(self, mine: range) -> Batch:
        """The samples of those numbers; the next that can be read stands in for one that cannot."""
        examples, corrupt = [], []
        for number in mine:
            for place in range(number, number + self.count + 1):
                example = self.reader(self._sample(place), place)
                if isinstance(example, Example):
                    examples.append(example)
                    break
                if place == number:
                    corrupt.append(example)
            else:
                raise ShardError(f"no sample can be read from {', '.join(self.paths[:3])}: {corrupt[-1][1]}")
        return batch_of(examples, corrupt)


class Held(Numbered):
    """Samples of any shards, decoded once and kept in memory: all, or those of some names."""

    def _samples(self) -> list[dict]:
        """``ConfigError`` for a name of ``only`` that no sample has."""
        config = self.config
        chosen = list(wanted(read_shards(self.paths), config, whole=config.random_crop is not None))
        if missing := set(config.only) - set(map(_name, chosen)):
            raise ConfigError(f"no picture in {config.shards} is called {', '.join(sorted(missing))}")
        return chosen

    def _order(self) -> Order:
        return Order([len(self.samples)], len(self.samples), self.seed)

    def _sample(self, place: int) -> dict:
        return self.samples[self.places[place][1]]

    def _each(self) -> Iterator[dict]:
        return iter(self.samples)


class Dealt(FromShards):
    """Addresses and compressed tars, read from front to back; dealt out to processes and their workers."""

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int) -> None:
        super().__init__(config, seed, rank, world)
        self.order = {"processes": world, "workers": config.workers}

    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        """This worker's batches; ``step`` is the number of workers, whose lane gives no other."""
        workers = max(1, self.config.workers)
        which, lanes = self.rank * workers + first % workers, self.world * workers
        lane = Lane(self.paths, which, lanes, self.config.shuffle, fold(self.seed))
        start = first // workers * n  # samples of this lane that lie before
        offset = which << 40  # far from the numbers of other lanes
        examples, corrupt, waiting = [], [], 0
        for place, sample in enumerate(lane.samples(start), start):
            example = self.reader(sample, offset + place)
            waiting += 1
            if not isinstance(example, Example):
                corrupt.append(example)
                if waiting > 10_000:
                    raise ShardError(f"10,000 samples in a row cannot be read: {': '.join(example)}")
                continue
            examples += [example] * waiting
            waiting = 0
            while len(examples) >= n:
                yield batch_of(examples[:n], corrupt)
                examples, corrupt = examples[n:], []


def wanted(samples: Iterable[dict], config: DataConfig, whole: bool = False) -> Iterator[dict]:
    """The samples of the names in ``only``, with no more of their pictures than is used: these may be large.

    whole: with their pictures as they are.
    """
    for sample in samples:
        if config.only and _name(sample) not in config.only:
            continue
        image = sample["image"]
        if not whole:
            image = square(image, config.size, background=config.background)
        yield {**sample, "image": image}


def _name(sample: dict) -> str:
    return sample["record"].get("name", sample["caption"])
