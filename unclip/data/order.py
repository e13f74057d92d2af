"""In which order samples are seen: shards shuffled, then samples within windows, by arithmetic alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random


class Order:
    """Epoch after epoch over shards of known lengths; the sample at any place is found without the rest.

    An epoch shuffles the shards, puts their samples in a row, and shuffles the row in windows, as a shuffle
    buffer does for a stream. The windows begin elsewhere in every epoch. Everything is given by the seed.
    """

    def __init__(
        self,
        counts: Sequence[int],  # samples in each shard
        window: int = 0,  # samples that are shuffled together; 0 keeps the order of the files
        seed: int = 0,
    ) -> None:
        self.counts, self.window, self.seed, self.total = list(counts), window, seed, sum(counts)
        if self.total < 1:
            raise ValueError("there is no sample to put in order")
        # What was asked for last, and the answer.
        self._last_epoch: tuple[int, tuple[list[int], list[int], int]] | None = None
        self._last_window: tuple[tuple[int, int], list[int]] | None = None

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.total

    def __getitem__(self, number: int) -> tuple[int, int]:
        """(shard, sample in it) of the sample that comes as ``number``, counted from 0 through all epochs."""
        epoch, place = divmod(number, self.total)
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            self._last_epoch = (epoch, self._shards(epoch))
        shards, ends, offset = self._last_epoch[1]
        if self.window:
            part, within = divmod(place + offset, self.window)
            if self._last_window is None or self._last_window[0] != (epoch, part):
                self._last_window = ((epoch, part), self._shuffled(epoch, part, offset))
            place = self._last_window[1][within if part else place]
        row = bisect_right(ends, place)
        shard = shards[row]
        return shard, place - (ends[row] - self.counts[shard])

    def _shards(self, epoch: int) -> tuple[list[int], list[int], int]:
        """An epoch's shards, the places where they end, and how far the first window begins before it."""
        shards, rng = list(range(len(self.counts))), Random(f"{self.seed} {epoch}")
        if self.window:
            rng.shuffle(shards)
        offset = rng.randrange(self.window) if 0 < self.window < self.total else 0
        return shards, list(accumulate(self.counts[shard] for shard in shards)), offset

    def _shuffled(self, epoch: int, part: int, offset: int) -> list[int]:
        """The places of a window in their shuffled order."""
        start = part * self.window - offset
        places = list(range(max(start, 0), min(start + self.window, self.total)))
        Random(f"{self.seed} {epoch} {part}").shuffle(places)
        return places
