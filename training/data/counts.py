"""How many samples shards have: as is stated beside them, or counted once, in parallel, and kept."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from unclip.data.indexed import stated_count
from unclip.data.tars import index
from unclip.files import cache_folder, read_json, write_json

FOLDER = "counts"  # in the cache
MANY = 64  # shards that are worth processes of their own


def counts_of(paths: Sequence[str], quiet: bool = False) -> list[int]:
    """Samples in each of some shards on disk.

    What nothing beside a shard states is counted and kept in the cache, until the file changes. Every million
    of samples takes a minute of a processor then; ``training.shards`` and img2dataset state it.
    """
    counts = {path: stated_count(path) for path in paths}
    unknown: dict[str, list[str]] = defaultdict(list)  # by folder
    for path, count in counts.items():
        if count is None:
            unknown[os.path.dirname(os.path.abspath(path))].append(path)
    bar = tqdm(desc="counting", total=sum(map(len, unknown.values())), unit=" shards", leave=False, delay=2,
               disable=quiet)  # fmt: skip
    with bar:
        for folder, some in unknown.items():
            counts |= _kept(folder, some, bar)
    return [counts[path] or 0 for path in paths]


def _kept(folder: str, paths: Sequence[str], bar: tqdm) -> dict[str, int]:
    """The counts of a folder's shards, from the cache as far as they are known there."""
    kept = cache_folder() / FOLDER / f"{hashlib.sha256(folder.encode()).hexdigest()[:24]}.json"
    try:
        known = read_json(kept, "the counts of shards", shards=dict)["shards"]
    except (OSError, ValueError):
        known = {}
    marks = {path: _mark(path) for path in paths}
    counts = {path: known[mark] for path, mark in marks.items() if _is_count(known.get(mark))}
    bar.update(len(counts))
    new = [path for path in paths if path not in counts]
    with ExitStack() as stack:
        counted = map(_count, new)
        if len(new) >= MANY:  # spawned, not forked: the caller may hold threads (and locks) of its own
            pool = stack.enter_context(ProcessPoolExecutor(mp_context=get_context("spawn")))
            counted = pool.map(_count, new, chunksize=8)
        for path, count in zip(new, counted, strict=True):
            counts[path] = count
            bar.update()
    if new:
        try:
            names = {os.path.basename(path) for path in paths}  # of the others what is known stays
            others = {mark: count for mark, count in known.items() if mark.rsplit(" ", 2)[0] not in names}
            now = {marks[path]: counts[path] for path in paths}
            write_json(kept, {"folder": folder, "shards": others | now})
        except OSError:  # a cache that cannot be written costs time, and nothing else
            pass
    return counts


def _mark(path: str) -> str:
    """A file as it is now."""
    facts = os.stat(path)
    return f"{os.path.basename(path)} {facts.st_size} {facts.st_mtime_ns}"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _count(path: str) -> int:
    return len(index(Path(path)).entries)
