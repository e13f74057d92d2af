"""Shards on this machine's disks, by number: any sample at once, and how many there are."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files import read_json
from .addresses import is_address
from .tars import BLOCK, Index, index, read

MANIFEST = "manifest.json"  # what ``training.shards`` writes beside its shards
INDICES = 16  # of shards, that stay in memory


def on_disk(path: str) -> bool:
    """Whether a shard is a file whose samples can be read one by one: local, and not compressed."""
    if is_address(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(6)
    return not start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))  # gz, bz2, xz, zstd


class Indexed:
    """Samples of tars on disk, by shard and number. Safe to use in several processes at once."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = list(paths)
        self._indices: OrderedDict[str, Index] = OrderedDict()

    def index(self, path: str) -> Index:
        """What lies where in a shard."""
        if path not in self._indices:
            self._indices[path] = index(path)
            if len(self._indices) > INDICES:
                self._indices.popitem(last=False)
        self._indices.move_to_end(path)
        return self._indices[path]

    def count(self, path: str) -> int:
        """Samples in a shard: from the manifest beside it if that knows it, else by looking through."""
        stated = stated_count(path)
        return len(self.index(path).entries) if stated is None else stated

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """The undecoded sample (shard, number in it), as webdataset yields it.

        One that is not there, because the file has changed, has an "__error__" instead of files.
        """
        path, number = self.paths[place[0]], place[1]
        try:
            return read(path, self.index(path).entries[number])
        except (OSError, IndexError) as error:
            return {
                "__key__": f"{path}#{number}",
                "__url__": path,
                "__error__": f"the shard has changed or cannot be read ({error})",
            }


def stated_count(path: str) -> int | None:
    """How many samples the manifest beside a shard states; None where it does not know this file."""
    entry = stated(path)
    size = os.path.getsize(path)
    if entry is None or entry["bytes"] != size or not 0 <= entry["samples"] <= size // BLOCK:
        return None
    return entry["samples"]


def stated(path: str) -> dict | None:
    """What the manifest beside a shard says of it, "samples" and "bytes" at least; None for nothing sound."""
    entry = _manifest(str(Path(path).parent)).get(Path(path).name)
    sound = isinstance(entry, dict) and all(type(entry.get(key)) is int for key in ("samples", "bytes"))
    return entry if sound else None


@lru_cache(64)
def _manifest(folder: str) -> dict:
    """The entries of a folder's manifest by file name; none if it is not there or not to be understood."""
    try:
        return read_json(Path(folder) / MANIFEST, "the manifest", files=dict)["files"]
    except (OSError, ValueError):
        return {}
