"""Tars made of named bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from shards import encoded, noise


def tar_bytes(*members: tuple) -> bytes:
    """members: (name, bytes), and pairs of what the header says besides."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, data, *more in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in dict(more).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return whole.getvalue()


def tar_of(path: Path, *members: tuple) -> Path:
    path.write_bytes(tar_bytes(*members))
    return path


def good(key: str) -> tuple:
    """The members of a sound sample."""
    return (f"{key}.png", encoded(noise(8, 8))), (f"{key}.txt", b"a caption")
