"""Shards are written here: tars of pictures, captions and records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import webdataset as wds

from ..files import named, written_aside


class ShardWriter:
    """Writes samples into ``folder/prefix-000000.tar`` and on; the same samples, the same bytes.

    Each tar is written beside its place and renamed when it is complete, so that no half-written
    shard is ever seen. Use as a context manager; after an error the tar in progress is removed.
    """

    def __init__(
        self,
        folder: str | Path,  # where the tars go; made if it does not exist
        prefix: str,  # first part of their names
        per_shard: int = 1000,  # samples in a tar
    ):
        if per_shard < 1:
            raise ValueError(f"per_shard must be at least 1, not {per_shard}")
        self.folder, self.prefix, self.per_shard = Path(folder), prefix, per_shard
        self.folder.mkdir(parents=True, exist_ok=True)
        self.paths: list[Path] = []  # complete tars, in order
        self.counts: list[int] = []  # samples in each of them
        self.count = 0  # samples written
        self._tar: wds.TarWriter | None = None

    def write(self, key: str, files: dict[str, bytes]) -> None:
        """Add one sample: ``files`` maps an extension without its dot to the file's bytes."""
        if self._tar is None:
            # Fixed owner and time: a tar depends on its samples and on nothing else.
            self._stream = open(self._partial, "wb")
            self._tar = wds.TarWriter(self._stream, encoder=False, mtime=0, user="unclip", group="unclip")
        with named(self._partial):
            self._tar.write({"__key__": key, **files})
        self.count += 1
        if self.count % self.per_shard == 0:
            self._finish()

    @property
    def _partial(self) -> Path:
        return self.folder / f".{self.prefix}.partial"

    def _finish(self) -> None:
        if self._tar is None:
            return
        with named(self._partial):
            self._tar.close()
            self._stream.close()
        self._tar = None
        path = self.folder / f"{self.prefix}-{len(self.paths):06d}.tar"
        os.replace(self._partial, path)
        self.paths.append(path)
        self.counts.append(self.count - sum(self.counts))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._finish()
        elif self._tar is not None:
            self._tar.close()
            self._stream.close()
            self._tar = None
            self._partial.unlink(missing_ok=True)


@contextmanager
def tar_of(path: str | Path) -> Iterator[Callable[[str, dict[str, bytes]], None]]:
    """Inside, what adds a sample (its key, its files by extension) to a tar, which is there whole in the end.

    The same samples, the same bytes; after an error there is none.
    """
    with written_aside(path) as aside, open(aside, "wb") as stream:
        tar = wds.TarWriter(stream, encoder=False, mtime=0, user="unclip", group="unclip")

        def write(key: str, files: dict[str, bytes]) -> None:
            tar.write({"__key__": key, **files})

        yield write
        tar.close()
