"""Shards that can only be read from front to back (URLs, compressed tars), dealt out to readers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from .reading import ShardError, buffered, stream


class Lane:
    """One reader's share of the shards, epoch after epoch, shuffled by shard and buffer.

    Each epoch deals the shards out anew, to every reader as many. Those that are left over are read by
    several, each of which takes every so-manieth sample. So every sample is seen by exactly one reader in
    an epoch, however few the shards. Readers come to their next epoch on their own: none waits for another.
    """

    def __init__(
        self,
        urls: Sequence[str],
        lane: int = 0,  # which reader this is
        lanes: int = 1,  # of how many: processes x data workers
        window: int = 0,  # samples in the shuffle buffer; 0 keeps the order of the shards
        seed: int = 0,
    ) -> None:
        self.urls, self.lane, self.lanes, self.window, self.seed = list(urls), lane, lanes, window, seed
        self.counts: dict[str, int] = {}  # samples in the shards that were read to their end

    def dealt(self, epoch: int) -> list[tuple[str, int, int]]:
        """This reader's shards in an epoch: (url, k, m), of which it takes the samples k, k + m, ..."""
        urls = list(self.urls)
        if self.window:
            Random(f"{self.seed} {epoch}").shuffle(urls)
        whole = len(urls) // self.lanes * self.lanes
        mine = [(url, 0, 1) for url in urls[self.lane : whole : self.lanes]]
        if rest := urls[whole:]:
            which = self.lane % len(rest)
            readers = range(which, self.lanes, len(rest))
            mine.append((rest[which], (readers.index(self.lane) + epoch) % len(readers), len(readers)))
        return mine

    def samples(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The undecoded samples from number ``start`` on, for ever; those before are read past, undecoded.

        Whole epochs of shards that were read before are skipped by arithmetic. ``ShardError`` when the
        shards hold nothing.
        """
        empty = 0
        for epoch in itertools.count():
            known = self._length(epoch)
            if known is not None and 0 < known <= start:
                start -= known
                continue
            seen = 0
            for sample in self._epoch(epoch):
                seen += 1
                if seen > start:
                    yield sample
            start = max(0, start - seen)
            empty = 0 if seen else empty + 1
            if empty > 100:
                raise ShardError(f"no sample can be read from {', '.join(self.urls[:3])}")

    def _length(self, epoch: int) -> int | None:
        """How many samples this reader has in an epoch; None if it does not know yet."""
        mine = self.dealt(epoch)
        if any(url not in self.counts for url, _, _ in mine):
            return None
        return sum(len(range(k, self.counts[url], m)) for url, k, m in mine)

    def _epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        samples = itertools.chain.from_iterable(self._shard(*part) for part in self.dealt(epoch))
        if not self.window:
            return samples
        return buffered(samples, self.window, Random(f"{self.seed} {epoch} {self.lane}"))

    def _shard(self, url: str, k: int, m: int) -> Iterator[dict[str, Any]]:
        number = -1
        for number, sample in enumerate(stream(url)):
            if number % m == k:
                yield sample
        self.counts[url] = number + 1
