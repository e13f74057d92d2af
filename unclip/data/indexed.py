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
STATS = "_stats.json"  # what img2dataset writes beside each shard, after its name
INDEXES = ("index.json", "shards.json")  # as webdataset's index of a folder is called
INDICES = 16  # of shards, that stay in memory


def on_disk(path: str) -> bool:
    """Whether a shard is a file whose samples can be read one by one: local, and not compressed."""
    if is_address(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(6)
    return not start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))  # gz, bz2, xz, zstd


class ShardIndexError(ValueError):
    """What lists shards says something else than they hold, so that no order of samples can be relied on."""


class Indexed:
    """Samples of tars on disk, by shard and number. Safe to use in several processes at once."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = list(paths)
        self._indices: OrderedDict[str, Index] = OrderedDict()

    def index(self, path: str) -> Index:
        """What lies where in a shard."""
        if path not in self._indices:
            content = index(path)
            claimed = stated_count(path)
            if claimed not in (None, len(content.entries)) and not content.problems:
                raise ShardIndexError(
                    f"{path} holds {len(content.entries):,} samples, and what lies beside it ({MANIFEST}, "
                    f"{STATS} or {' or '.join(INDEXES)}) says {claimed:,}: make that anew, or remove it"
                )
            self._indices[path] = content
            if len(self._indices) > INDICES:
                self._indices.popitem(last=False)
        self._indices.move_to_end(path)
        return self._indices[path]

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """The undecoded sample (shard, number in it), as webdataset yields it.

        One that is not there, because the file has changed, has an "__error__" instead of files.
        """
        path, number = self.paths[place[0]], place[1]
        try:
            return read(path, self.index(path).entries[number])
        except ShardIndexError:
            raise
        except (OSError, ValueError, IndexError) as error:
            return {
                "__key__": f"{path}#{number}",
                "__url__": path,
                "__error__": f"the shard has changed or cannot be read ({error})",
            }


def stated_count(path: str) -> int | None:
    """How many samples a shard has by what lies beside it: our manifest, img2dataset's ``_stats.json`` or
    webdataset's index; None where none of them knows this file as it is now.
    """
    size = os.path.getsize(path)
    for counted in (_by_manifest, _by_stats, _by_index):
        count = counted(path, size)
        if type(count) is int and 0 <= count <= size // BLOCK:
            return count
    return None


def _by_manifest(path: str, size: int) -> object:
    entry = stated(path)
    return None if entry is None or entry["bytes"] != size else entry["samples"]


def _by_stats(path: str, size: int) -> object:
    """img2dataset's: of the downloads those that succeeded are in the tar."""
    stats = f"{path.removesuffix('.tar')}{STATS}"
    return None if _is_newer(path, stats) else _json(stats).get("successes")


def _by_index(path: str, size: int) -> object:
    """webdataset's (wids): a list of all shards of a folder."""
    folder, name = os.path.split(path)
    for index_name in INDEXES:
        entry = _shard_list(os.path.join(folder, index_name)).get(name, {})
        if "filesize" in entry and entry["filesize"] == size:
            return entry.get("nsamples")
        if entry and "filesize" not in entry and not _is_newer(path, os.path.join(folder, index_name)):
            return entry.get("nsamples")
    return None


def _is_newer(path: str, listing: str) -> bool:
    """Whether a shard was written after what lists it, or that is not there."""
    try:
        return os.path.getmtime(path) > os.path.getmtime(listing)
    except OSError:
        return True


def _json(path: str) -> dict:
    """A small JSON object; {} for what is not there or not to be understood."""
    try:
        return read_json(Path(path), "the index")
    except (OSError, ValueError):
        return {}


@lru_cache(64)
def _shard_list(path: str) -> dict[str, dict]:
    """The entries of webdataset's index by file name."""
    shards = _json(path).get("shardlist")
    entries = [one for one in shards if isinstance(one, dict)] if isinstance(shards, list) else []
    return {os.path.basename(str(one.get("url"))): one for one in entries}


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
