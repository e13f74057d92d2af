"""The batches of `training.clip`, by number: each sample depends on (seed, its number) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from unclip.data.batches import floats, shrink
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.noise import Noise, fold, randn
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.timesteps import uniform
from unclip.guides.noised_clip import NoisedClipStageConfig

from ..data.pool import Pool
from ..data.source import Source
from ..streams import Purpose, numbers, seed_of, streams
from .pool import augment, groups

if TYPE_CHECKING:
    from .recipe import ClipRecipe


Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


class ClipBatch(NamedTuple):
    """What a phase's module is called with, and of which samples it is."""

    inputs: tuple
    keys: list[str]


class Drawn(NamedTuple):
    """Samples: pictures in [-1, 1], captions, names as numbers, keys, and the teacher's vectors."""

    image: Tensor
    caption: list[str]
    name: Tensor
    key: list[str]
    vectors: Tensor | None = None


class ContrastBatches:
    """Pictures, texts, and what tells which pairs are alike; of a pool, or as the source streams them.

    vectors: the teacher's, [M, T] of the pool's pictures, in the place of texts; None = texts.
    """

    def __init__(
        self,
        recipe: ClipRecipe,
        tokenize: Tokenize,
        source: Source,
        accelerator: Accelerator,
        pool: Pool | None = None,
        vectors: Tensor | None = None,
    ) -> None:
        self.recipe, self.tokenize, self.source, self.accelerator = recipe, tokenize, source, accelerator
        self.pool, self.vectors, self.group = pool, vectors, None if pool is None else groups(pool)
        self.noised = None if recipe.noised is None else Noiser(recipe.noised)

    def __call__(self, n: int, start: int) -> Iterator[ClipBatch]:
        """Batches of n a process, from number start on."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        numbered = ((number, numbers(number, n, rank, world)) for number in count(start))
        stream = self.source.batches(n, start) if self.pool is None else None
        for _, mine in numbered:
            yield self._batch(self._streamed(next(stream), mine) if stream else self._pooled(mine), mine)

    def _streamed(self, batch: object, mine: range) -> Drawn:
        return Drawn(batch.image, batch.caption, torch.tensor(mine), batch.key)

    def _pooled(self, mine: range) -> Drawn:
        pool = self.pool
        rows = [seed_of(self.recipe.seed, Purpose.SAMPLE, picture) % len(pool.caption) for picture in mine]
        vectors = None if self.vectors is None else self.vectors[rows].float()
        return Drawn(
            floats(pool.pictures(rows)),
            [pool.caption[row] for row in rows],
            self.group[rows],
            [str(row) for row in rows],
            vectors,
        )

    def _batch(self, drawn: Drawn, mine: range) -> ClipBatch:
        recipe, device = self.recipe, self.accelerator.device
        chance = streams(recipe.seed, Purpose.AUGMENT, mine)  # on the CPU: the same on every device
        image = drawn.image.to(device)
        image = augment(image, chance) if recipe.augment else image
        images = (
            (image,)
            if self.noised is None
            else self.noised(image, streams(recipe.seed, Purpose.LOSS, mine, device))
        )
        if drawn.vectors is None:
            texts = self.tokenize(drawn.caption)
        else:
            noise = randn(drawn.vectors.shape, "cpu", chance) * drawn.vectors.shape[1] ** -0.5
            texts = (drawn.vectors + recipe.teacher.noise * noise,)
        facts = torch.stack([torch.tensor([_number(text) for text in drawn.caption]), drawn.name], 1)
        return ClipBatch((images, tuple(x.to(device) for x in texts), facts.to(device)), drawn.key)


class Noiser:
    """Pictures at any level of a process, all levels alike."""

    def __init__(self, config: NoisedClipStageConfig) -> None:
        self.size = config.net.image_size
        self.schedule = make_schedule(config.schedule, config.net.timesteps)

    def __call__(self, image: Tensor, source: Noise) -> tuple[Tensor, Tensor]:
        """[N,3,H,W] -> noised [N,3,S,S], and their t in 1..T, int64 [N]."""
        x0 = shrink(image, self.size)
        t = uniform(len(x0), self.schedule.timesteps, source).to(x0.device)
        return self.at(x0, t, randn(x0.shape, x0.device, source)), t

    def at(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [N,3,S,S] at levels t, int64 [N]."""
        return diffuse(x0, noise, self.schedule.at(t))


class DistilBatches:
    """Texts of nearly the same length, so that little padding is computed, and where they should be.

    ids, mask: [M, L] of all texts; goal: [M, D] of unit norm.
    """

    def __init__(self, ids: Tensor, mask: Tensor, goal: Tensor, seed: int, accelerator: Accelerator) -> None:
        self.columns, self.length = (ids, mask, goal), mask.sum(1)
        self.seed, self.accelerator = seed, accelerator

    def __call__(self, n: int, start: int) -> Iterator[ClipBatch]:
        """Batches of n a process, from number start on: shares of one that all processes draw alike."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for step in count(start):
            generator = torch.Generator().manual_seed(fold(self.seed, step))
            chosen = torch.randint(len(self.length), (16 * n * world,), generator=generator)
            chosen = chosen[self.length[chosen].argsort(stable=True)]
            first = int(torch.randint(16, (), generator=generator)) * n * world
            chosen = chosen[first : first + n * world][rank::world]
            inputs = tuple(column[chosen].to(self.accelerator.device) for column in self.columns)
            yield ClipBatch(inputs, [str(row) for row in chosen.tolist()])


def _number(text: str) -> int:
    """The same for the same text, in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
