"""Pictures that are answered by address: for an hour, so many bytes, under names that nobody guesses."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

SECONDS, BYTES = 3600.0, 512 << 20


class Store:
    """Files in a folder of its own, which goes when the store closes. The oldest make room for new ones."""

    def __init__(self, seconds: float = SECONDS, most: int = BYTES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="unclip-")
        self._files: OrderedDict[str, tuple[float, int]] = (
            OrderedDict()
        )  # until when, and bytes; oldest first
        self._bytes, self.seconds, self.most = 0, seconds, most

    def __len__(self) -> int:
        return len(self._files)

    def keep(self, data: bytes, suffix: str) -> str:
        """Keep a file of that ending (".png"); returns its name, of 192 random bits."""
        self.forget()
        while self._files and self._bytes + len(data) > self.most:
            self._remove(next(iter(self._files)))
        name = secrets.token_urlsafe(24) + suffix
        (Path(self._folder.name) / name).write_bytes(data)
        self._files[name] = (time.monotonic() + self.seconds, len(data))
        self._bytes += len(data)
        return name

    def find(self, name: str) -> bytes | None:
        """The file that was kept under that name; None if there is none, or none any more."""
        self.forget()
        return (Path(self._folder.name) / name).read_bytes() if name in self._files else None

    def forget(self) -> None:
        """Remove what has had its time."""
        now = time.monotonic()
        while self._files and next(iter(self._files.values()))[0] <= now:
            self._remove(next(iter(self._files)))

    def close(self) -> None:
        self._files.clear()
        self._folder.cleanup()

    def _remove(self, name: str) -> None:
        self._bytes -= self._files.pop(name)[1]
        (Path(self._folder.name) / name).unlink(missing_ok=True)
