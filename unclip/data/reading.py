"""Shards: webdataset tars of pictures with captions, written alike every time and read in order.

A sample is some files with one key: a picture (``.webp``, ``.png``, ``.jpg`` or ``.jpeg``), a
caption (``.txt``) and, where there is more to say, a record (``.json``). The record may hold the caption
("caption", as img2dataset has it) or several ("captions"). ``tars.py`` reads shards on disk by number.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import itertools
import lzma
import os
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds
from webdataset.shardlists import expand_urls

from .addresses import PROGRAM, as_file, checked, is_address
from .pictures import open_picture
from .samples import picture_of, texts_of
from .tars import samples

WAITS = (1.0, 5.0)  # seconds before a shard that came over the network is asked for again


class ShardError(ValueError):
    """Shards that cannot be found or read; the message names them."""


class Shards(list[str]):
    """Shards that were found: addresses, and files, whose names are not read as anything else again."""


def expand(paths: str | Path | Iterable[str | Path]) -> Shards:
    """The shards meant by paths, globs, brace ranges ("train-{000000..000008}.tar") and folders.

    A folder means every tar in it. What has a scheme ("https://...", "pipe:...") is taken as it is.
    Each item's shards are sorted. What this returned is returned as it is. Raises ``ShardError`` for an item
    that means no file, or an address that is none.
    """
    if isinstance(paths, Shards):
        return paths
    items = [paths] if isinstance(paths, str | Path) else list(paths)
    if not items:
        raise ShardError("no shards are named")
    shards = Shards()
    for item in items:
        for path in spelled_out(item):
            if is_address(path):
                shards.append(_checked(path))
                continue
            if os.path.isdir(path):
                found = glob.glob(os.path.join(glob.escape(path), "*.tar"))
            else:
                found = [path] if os.path.isfile(path) else glob.glob(path)
            if not found:
                raise ShardError(f"no shards at {path}")
            shards += map(as_file, sorted(found))
    return shards


def _checked(address: str) -> str:
    try:
        return checked(address)
    except ValueError as error:
        raise ShardError(str(error)) from None


def spelled_out(item: str | Path) -> list[str]:
    """What a brace range stands for, whether it is there or not; anything else as it is."""
    return list(expand_urls(str(item)))


def read_shards(
    shards: str | Path | Iterable[str | Path],  # as for ``expand``
    shuffle: int = 0,  # samples in the shuffle buffer; 0 keeps the order of the files
    seed: int = 0,  # of the shuffling, with the number of the epoch
    epochs: int | None = 1,  # times through the shards; None: for ever
    skipped: Counter[str] | None = None,  # counts the samples that were left out, by reason
) -> Iterator[dict[str, Any]]:
    """Yield samples: ``key``, ``image`` PIL, ``caption``, all ``captions``, ``record`` dict, ``shard``.

    The image is upright, RGBA where the file has transparency, else RGB. The same arguments give the same
    order. A sample that cannot be read (no picture, no caption, a damaged file) is skipped and
    counted, and at the end of an epoch the count is told on stderr. Raises ``ShardError`` when
    there are no shards, or no sample in them can be read.
    """
    urls = expand(shards)
    for epoch in itertools.count() if epochs is None else range(epochs):
        lost: Counter[str] = Counter()
        count = 0
        for sample in _epoch(urls, shuffle, random.Random(f"{seed} {epoch}"), lost):
            try:
                decoded = decode(sample)
            except ValueError as error:
                lost[f"{type(error).__name__}: {error}"] += 1
                continue
            count += 1
            yield decoded
        if lost:
            (reason, _), of = lost.most_common(1)[0], lost.total() + count
            print(f"skipped {lost.total()} of {of} samples ({reason})", file=sys.stderr)
        if skipped is not None:
            skipped.update(lost)
        if not count:
            raise ShardError(f"no sample can be read from {', '.join(urls[:3])}")


def _epoch(
    urls: Sequence[str], shuffle: int, rng: random.Random, lost: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Once through the shards, undecoded; damaged tars are counted and left at the damage."""

    def whole() -> Iterator[dict[str, Any]]:
        for sample in itertools.chain.from_iterable(map(stream, urls)):
            if "__error__" in sample:
                lost[sample["__error__"]] += 1
            else:
                yield sample

    urls = list(urls)
    if shuffle:
        rng.shuffle(urls)
    return buffered(whole(), shuffle, rng) if shuffle else whole()


def buffered(samples: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """``samples`` shuffled by a buffer of ``size`` of them."""
    return wds.shuffle(size, initial=size, rng=rng)(samples)


def stream(url: str, waits: Sequence[float] = WAITS) -> Iterator[dict[str, Any]]:
    """A shard's samples from front to back, undecoded, from wherever webdataset can open it.

    What came over the network and broke off is asked for again after each of ``waits`` seconds, and goes
    on where it was. What stays damaged ends with ``{"__key__": url, "__error__": reason}``.
    """
    given = 0
    for wait in [*(waits if is_address(url) and not url.startswith(PROGRAM) else ()), None]:
        try:
            with _opened(url) as file:
                for number, sample in enumerate(samples(file, url)):
                    if number == given:
                        given += 1
                        yield sample
                _drain(file)
            return
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            if wait is None:
                if getattr(error, "rest", None) is not None:
                    yield error.rest
                yield {"__key__": url, "__url__": url, "__error__": f"{type(error).__name__}: {error}"}
                return
        time.sleep(wait)


@contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """A file, or what webdataset opens (URLs by curl, pipes), unpacked if it is compressed."""
    unpack = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    raw = wds.gopen(url) if is_address(url) else open(url, "rb")
    try:
        file = io.BufferedReader(_Raw(raw), 1 << 16)
        start = file.peek(2)[:2]
        yield unpack[start](file) if start in unpack else file
    finally:
        with suppress(OSError):  # of a program that was stopped before it had written everything
            raw.close()


class _Raw(io.RawIOBase):
    """What only reads, as the standard library wants it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _drain(file: BinaryIO) -> None:
    """Read what follows the end mark, so that what writes it ends well."""
    while file.read(1 << 20):
        pass


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """A raw sample's bytes as picture, captions and record; ``ValueError`` for what is missing."""
    image = open_picture(picture_of(sample))
    captions, record = texts_of(sample)
    return {
        "key": sample["__key__"],
        "image": image,
        "caption": captions[0],
        "captions": captions,
        "record": record,
        "shard": sample["__url__"],
    }
