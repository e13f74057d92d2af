"""Shards: webdataset tars of pictures with captions, written alike every time and read in order.

A sample is some files with one key: a picture (``.webp``, ``.png``, ``.jpg``, ``.jpeg``, or of another
format that is read), captions (``.txt``) and, where there is more to say, a record (``.json``), as
``samples.py`` says. ``tars.py`` reads shards on disk by number.
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
import select
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import webdataset as wds
from webdataset.shardlists import expand_urls

from ..config import looked_up
from ..files import regular
from .addresses import PROGRAM, as_file, checked, is_address, variants
from .pictures import open_picture
from .samples import picture_of, texts_of
from .tars import Readable, TarError, samples

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST = 100_000  # shards that one name with braces may stand for
PATIENCE = 120.0  # seconds in which a program or a server must send something
RATIO, SLACK = 200, 1 << 28  # a compressed tar's bytes to those of its file, and how many more are no matter
AFTER = 64  # MiB that are read behind an end mark
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
                files = glob.glob(os.path.join(glob.escape(path), "*.tar"))
            else:
                files = [path] if os.path.lexists(path) else glob.glob(path)
            if not files:
                raise ShardError(f"no shards at {path}{looked_up(path)}")
            shards += [as_file(_regular(file)) for file in sorted(files)]
    return shards


def _regular(path: str) -> str:
    try:
        return str(regular(path)) and path
    except ValueError as error:
        hint = f"; what a program writes is read as 'pipe:cat {path}'" if "is a pipe" in str(error) else ""
        raise ShardError(f"{error}{hint}") from None


def _checked(address: str) -> str:
    try:
        return checked(address)
    except ValueError as error:
        raise ShardError(str(error)) from None


def spelled_out(item: str | Path) -> list[str]:
    """What a brace range stands for, whether it is there or not; anything else as it is.

    ``ShardError`` for one that stands for more than ``MOST``.
    """
    if variants(str(item)) > MOST:
        raise ShardError(f"{str(item)[:80]!r} stands for more than {MOST:,} shards")
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


def stream(
    url: str, waits: Sequence[float] = WAITS, problems: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """A shard's samples from front to back, undecoded, from wherever webdataset can open it.

    What came over the network and broke off is asked for again after each of ``waits`` seconds, and goes
    on where it was. What stays damaged ends with ``{"__key__": url, "__error__": reason}``. problems: files
    of the tar that are left out, by name, with the reason.
    """
    count = 0  # of those that were yielded
    for wait in [*(waits if is_address(url) and not url.startswith(PROGRAM) else ()), None]:
        cut: list[dict[str, Any]] = []
        try:
            with _opened(url) as file:
                for number, sample in enumerate(samples(file, url, cut, problems)):
                    if number == count:
                        count += 1
                        yield sample
                _drain(file)
            return
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            if wait is None:
                yield from cut
                yield {"__key__": url, "__url__": url, "__error__": f"{type(error).__name__}: {error}"}
                return
        time.sleep(wait)


@contextmanager
def _opened(url: str) -> Iterator[Readable]:
    """A file, or what webdataset opens (URLs by curl, pipes), unpacked if it is compressed."""
    unpack: dict[bytes, Callable[[BinaryIO], Readable]]
    unpack = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    path = url2pathname(urlsplit(url).path) if url.startswith("file:") else url
    raw = _Raw(wds.gopen(path) if is_address(path) else open(regular(path), "rb"), url)
    try:
        file = io.BufferedReader(raw, 1 << 16)
        start = file.peek(2)[:2]
        yield _Unpacked(unpack[start](file), raw) if start in unpack else file
    finally:
        raw.stop()


class _Raw(io.RawIOBase):
    """What only reads, as the standard library wants it; a program that sends nothing is given up."""

    def __init__(self, stream: Any, url: str) -> None:
        self.stream, self.url, self.count = stream, url, 0
        self.program: subprocess.Popen[bytes] | None = getattr(stream, "proc", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view, program = memoryview(buffer), self.program
        data = self.stream.read(len(view)) if program is None else self._received(program, len(view))
        view[: len(data)] = data
        self.count += len(data)
        return len(data)

    def _received(self, program: subprocess.Popen[bytes], most: int) -> bytes:
        """What a program has written, at its end nothing; ``OSError`` if it failed, or does not go on."""
        output = self.stream.stream
        if os.name == "posix" and not select.select([output], [], [], PATIENCE)[0]:
            raise TimeoutError(f"{self.url[:200]} has sent nothing for {PATIENCE:g} seconds")
        data = os.read(output.fileno(), most)
        if not data:
            try:
                status = program.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{self.url[:200]} does not end") from None
            if status not in self.stream.ignore_status:
                raise OSError(f"{self.url[:200]} ended with status {status}")
        return data

    def stop(self) -> None:
        """Close it; a program that has more to write ends by that, or is ended."""
        if self.program is None:
            self.stream.close()
            return
        self.stream.stream.close()
        try:
            self.program.wait(1)
        except subprocess.TimeoutExpired:
            self.program.kill()
            self.program.wait()


class _Unpacked:
    """What is compressed, read until it proves a bomb: no pictures shrink to a part in ``RATIO``."""

    def __init__(self, file: Readable, raw: _Raw) -> None:
        self.file, self.raw, self.count = file, raw, 0

    def read(self, length: int) -> bytes:
        data = self.file.read(length)
        self.count += len(data)
        if self.count > SLACK + RATIO * self.raw.count:
            raise TarError(f"it unpacks to more than {RATIO} times its size, as no pictures do")
        return data


def _drain(file: Readable) -> None:
    """Read what follows the end mark, so that what writes it ends well."""
    for _ in range(AFTER):
        if not file.read(1 << 20):
            return
    raise TarError(f"more than {AFTER} MiB follow its end mark")


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """A raw sample's bytes as picture, captions and record; ``ValueError`` for what is missing."""
    image = open_picture(picture_of(sample))
    texts = texts_of(sample)
    return {
        "key": sample["__key__"],
        "image": image,
        "caption": texts.captions[0],
        "captions": texts.captions,
        "record": texts.record,
        "shard": sample["__url__"],
    }
