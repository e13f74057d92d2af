"""What every kind of training pictures is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor

from unclip.data.batches import Batch

from ..icons.scenes import Scenes
from .pool import Pool


class Pictures(ABC):
    """Training batches by number. A kind is one class, made from (config, seed, rank, world).

    Picture number i, over all processes (``streams.numbers``), depends on (seed, i) alone, but for what
    ``order`` names. What else there is, only some kinds have.
    """

    order: dict[str, int] = {}  # what the batches depend on besides the seed
    count: int | None = None  # samples in an epoch, where that is known
    listing: dict[str, int | None] = {}  # the shards' files, and their bytes where these are known
    scenes: Scenes | None = None  # icons in memory
    pool: Pool | None = None
    embeds: Tensor | None = None  # float32 [M,D], of a pool's scenes

    @abstractmethod
    def every(self, n: int, first: int, step: int) -> Iterator[Batch]:
        """Every ``step``-th batch of ``n`` pictures from number ``first`` on, for ever."""

    @abstractmethod
    def once(self, n: int) -> Iterator[tuple[list[str], Batch]]:
        """Every picture once, as it is: names (else captions) and batches of ``n``."""

    def held(self, batch: Batch, samples: Sequence[dict]) -> Batch:
        """A held-out batch as this kind shows it; samples: those of the batch, from ``read_shards``."""
        return batch
