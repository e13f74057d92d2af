"""Where a training program's pictures and captions come from."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm

from unclip.config import ConfigError
from unclip.data.batches import Batch, Embedded, floats, stack
from unclip.data.indexed import Indexed, on_disk
from unclip.data.lanes import Lane
from unclip.data.order import Order
from unclip.data.pictures import square
from unclip.data.reading import ShardError, expand, read_shards
from unclip.diffusion.noise import fold

from ..icons.captions import caption, styled
from ..icons.scenes import Scenes
from ..streams import Purpose, numbers, seed_of
from .config import DataConfig
from .feed import fed
from .framing import turned
from .pool import Drawn, Pool, open_pool
from .reader import Example, Reader, columns


class Source:
    """Training batches by number, and the held-out pictures.

    order: what the order of the batches depends on besides the seed: nothing for shards on disk; the
    numbers of processes and of data workers for URLs and compressed tars, which are dealt out to them.
    """

    def __init__(self, config: DataConfig, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if config.heldout:
            expand(config.heldout)  # a missing shard is an error now, not in an hour
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self.paths = expand(config.shards)
        self.reader = self.samples = self.places = self.pool = self.embeds = None
        self.order: dict[str, int] = {}
        self.seen, self.corrupt = 0, {}
        if config.kind == "icons" and config.embeddings is not None:
            raise ConfigError(
                "icons are composed anew, and have no embeddings; data.embeddings needs data.kind: shards"
            )
        if config.kind != "icons" and config.pool is not None:
            raise ConfigError("data.pool keeps composed scenes, which data.kind: icons alone has")
        if config.pool is not None:
            self.pool = self._opened()
            self.places = Order([len(self.pool)], len(self.pool), seed)
            return
        if config.kind == "icons":
            _ = self.scenes  # a name that no picture has is an error now
            return
        self.reader = Reader(config, seed)
        if self.reader.embeddings is not None:  # those that are missing are an error now
            self.reader.embeddings.names([*config.shards, *config.heldout])
        if config.hold or config.only:
            self.samples = self._chosen(read_shards(config.shards))
            self.places = Order([len(self.samples)], len(self.samples), seed)
        elif all(on_disk(path) for path in self.paths):
            self.samples = Indexed(self.paths)
            self.places = self._counted()
        else:
            self.order = {"processes": world, "workers": config.workers}

    @cached_property
    def scenes(self) -> Scenes | None:
        """The icons in memory; None for other pictures."""
        config = self.config
        if config.kind != "icons":
            return None
        return Scenes.load(config.shards, config.size, config.scenes, config.only)

    def _opened(self) -> Pool:
        """The pool, which is drawn first if it is not there."""
        config = self.config
        facts = {
            "seed": self.seed,
            **config.model_dump(mode="json", include={"shards", "only", "crop", "flip", "rotate", "scenes"}),
        }
        alone = config.model_copy(update={"pool": None, "heldout": []})
        return open_pool(config.pool, config.crop or config.size, facts, partial(drawn, alone, self.seed))

    def embed(self, clip: str, embed: Callable[[Tensor], Tensor]) -> None:
        """Have a pool's batches come with embeddings: those of the CLIP of that identity, by ``embed``, which
        takes pictures float [n,3,S,S]; made once. ``ConfigError`` for a pool embedded by another CLIP.
        """
        self.embeds = self.pool.embedded(clip, lambda image: embed(floats(image)))

    def _counted(self) -> Order:
        """The order of shards on disk, whose samples are counted first."""
        bar = tqdm(self.paths, "counting", unit=" shards", leave=False, delay=2, disable=self.rank > 0)
        counts = [self.samples.count(path) for path in bar]
        for path, problem in self._damage(counts):
            print(f"{path}: {problem}", file=sys.stderr)
        if not sum(counts):
            raise ShardError(f"no sample can be read from {', '.join(self.paths[:3])}")
        return Order(counts, self.config.shuffle, self.seed)

    def _damage(self, counts: list[int]) -> Iterator[tuple[str, str]]:
        for path, count in zip(self.paths, counts, strict=True):
            if self.rank == 0 and not count:
                yield path, "; ".join(reason for _, reason in self.samples.index(path).problems) or "empty"

    def batches(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches of ``n`` from number ``start`` on, for ever.

        The pictures are numbered over all processes (``streams.numbers``), and each depends on (seed,
        number) alone, but for what ``order`` says. Those before ``start`` are not decoded.
        """
        for batch in fed(partial(self._every, n), start, self.config.workers):
            self._watch(batch)
            image = batch.image if batch.image.is_floating_point() else floats(batch.image)
            yield replace(batch, image=image)

    def _every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        """Every ``step``-th batch from number ``first`` on, with shards' pictures in eight bits."""
        if self.pool is not None:
            one = self._pooled
        elif self.scenes is not None:
            one = self._composed
        elif self.places is not None:
            one = self._numbered
        else:
            return self._dealt(n, first)
        return (one(n, number) for number in itertools.count(first, step))

    def _composed(self, n: int, number: int) -> Batch:
        mine = numbers(number, n, self.rank, self.world)
        made = self.scenes.each(
            [seed_of(self.seed, Purpose.SAMPLE, picture) for picture in mine], crop=self.config.crop
        )
        rngs = [Random(seed_of(self.seed, Purpose.AUGMENT, picture)) for picture in mine]
        flip, rotate = self.config.flip, self.config.rotate
        image = torch.stack(
            [turned(image, flip, rotate, rng) for image, rng in zip(made.image, rngs, strict=True)]
        )
        return Batch(image, made.caption, made.key)

    def _pooled(self, n: int, number: int) -> Batch:
        rows = [self.places[picture][1] for picture in numbers(number, n, self.rank, self.world)]
        embedded = None if self.embeds is None else Embedded(self.embeds[rows])
        return Batch(
            self.pool.pictures(rows),
            [self.pool.caption[row] for row in rows],
            [self.pool.key[row] for row in rows],
            embedded=embedded,
        )

    def _numbered(self, n: int, number: int) -> Batch:
        """A batch of samples that can be had by number; the next that can be read stands in for one that
        cannot.
        """
        examples, corrupt = [], []
        for picture in numbers(number, n, self.rank, self.world):
            for place in range(picture, picture + len(self.places) + 1):
                found = self.reader(self._sample(place), place)
                if isinstance(found, Example):
                    examples.append(found)
                    break
                if place == picture:
                    corrupt.append(found)
            else:
                raise ShardError(f"no sample can be read from {', '.join(self.paths[:3])}: {corrupt[-1][1]}")
        return _joined(examples, corrupt)

    def _sample(self, place: int) -> dict:
        shard, number = self.places[place]
        return self.samples[number] if isinstance(self.samples, list) else self.samples[shard, number]

    def _dealt(self, n: int, first: int) -> Iterator[Batch]:
        """This worker's batches, from number ``first`` on, of samples that are read from front to back."""
        workers = max(1, self.config.workers)
        lane = Lane(
            self.paths,
            self.rank * workers + first % workers,
            self.world * workers,
            self.config.shuffle,
            fold(self.seed),
        )
        done = first // workers  # batches of this lane that lie before
        offset = lane.lane << 40  # far from the numbers of other lanes
        examples, corrupt, waiting = [], [], 0
        for place, sample in enumerate(lane.samples(done * n), done * n):
            found = self.reader(sample, offset + place)
            waiting += 1
            if not isinstance(found, Example):
                corrupt.append(found)
                if waiting > 10_000:
                    raise ShardError(f"10,000 samples in a row cannot be read: {found[0]}: {found[1]}")
                continue
            examples += [found] * waiting
            waiting = 0
            while len(examples) >= n:
                yield _joined(examples[:n], corrupt)
                examples, corrupt = examples[n:], []

    def _watch(self, batch: Batch) -> None:
        """Tell of each unreadable sample once; ``ShardError`` when they are more than the share allowed."""
        self.seen += len(batch.key)
        for key, reason in batch.corrupt:
            if key not in self.corrupt:
                print(f"skipped {key}: {reason}", file=sys.stderr)
            self.corrupt[key] = self.corrupt.get(key, 0) + 1
        if not batch.corrupt:
            return
        lost, of = sum(self.corrupt.values()), max(self.seen, min(1_000, len(self.places or range(1_000))))
        if lost > self.config.max_corrupt * of:
            raise ShardError(
                f"{lost} of {of} samples cannot be read ({key}: {reason}), more than data."
                f"max_corrupt {self.config.max_corrupt}; look with python -m training.doctor"
            )

    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        """Every training picture once, as it is: names (else captions) and batches of ``n``."""
        if self.scenes is None:
            held = isinstance(self.samples, list)
            samples = iter(self.samples) if held else self._shrunk(read_shards(self.paths))
            while chosen := list(itertools.islice(samples, n)):
                batch = stack(chosen, self.config.size, background=self.config.background)
                yield batch.caption, batch
            return
        for start in range(0, len(self.scenes), n):
            rows = range(start, min(start + n, len(self.scenes)))
            records = [self.scenes.records[row] for row in rows]
            rng = Random(fold(self.seed, start))
            yield (
                [record["name"] for record in records],
                Batch(
                    self.scenes.pictures(rows),
                    [caption(record, rng) for record in records],
                    [record["key"] for record in records],
                ),
            )

    def _wants(self, sample: dict) -> bool:
        return not self.config.only or _name(sample) in self.config.only

    def _shrunk(self, samples: Iterable[dict]) -> Iterator[dict]:
        """The samples that are wanted, with no more of their pictures than is used: these may be large."""
        size, background = self.config.size, self.config.background
        for sample in filter(self._wants, samples):
            yield {**sample, "image": square(sample["image"], size, background=background)}

    def _chosen(self, samples: Iterator[dict]) -> list[dict]:
        """The samples with the names of ``only``; ``ConfigError`` for a name that none has."""
        whole = self.config.random_crop is not None
        chosen = list(filter(self._wants, samples) if whole else self._shrunk(samples))
        if missing := set(self.config.only) - {_name(sample) for sample in chosen}:
            raise ConfigError(f"no picture in {self.config.shards} is called {', '.join(sorted(missing))}")
        return chosen

    def heldout(self, limit: int) -> Batch | None:
        """Up to ``limit`` held-out pictures with plain captions, always the same; None if there are none."""
        if not self.config.heldout:
            return None
        samples = read_shards(self.config.heldout, shuffle=10_000, seed=0)
        samples = list(itertools.islice(self._shrunk(samples), limit))
        if not samples:
            return None
        batch = stack(samples, self.config.size, self.config.crop)
        if self.reader is not None and self.reader.embeddings is not None:
            batch = replace(batch, embedded=self.reader.embedded(samples))
        if self.config.kind == "icons":
            batch = replace(batch, caption=[styled(s["record"]) for s in samples])
        return batch


def drawn(config: DataConfig, seed: int, start: int, n: int = 256) -> Iterator[Drawn]:
    """What a pool keeps: a source's pictures uint8 [n,3,S,S] in batches, from number ``start`` on."""
    source = Source(config, seed)
    for number, batch in enumerate(source.batches(n, start // n), start // n):
        skip = max(0, start - number * n)
        image = ((batch.image[skip:] + 1) * 127.5).round().to(torch.uint8)
        yield image, batch.caption[skip:], batch.key[skip:]


def _joined(examples: Sequence[Example], corrupt: Sequence[tuple[str, str]]) -> Batch:
    """A batch whose pictures are uint8 still, as workers hand it over."""
    return Batch(*columns(examples), tuple(corrupt))


def _name(sample: dict) -> str:
    return sample["record"].get("name", sample["caption"])
