"""What the tests of data share: small pictures, and shards of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from unclip.data.writing import ShardWriter


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which nothing repeats."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """A picture like a photograph's soft parts."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 23) + np.cos(y / 31), np.sin((x + y) / 41), np.cos((x - 2 * y) / 37) + np.sin(x / 11)]
    return Image.fromarray(np.stack([(127 + 60 * wave).clip(0, 255) for wave in waves], -1).astype(np.uint8))


def sample(number: int, size: int = 8, **record: object) -> dict[str, bytes]:
    """A picture of one colour that its number gives, and a caption that says it."""
    colour = (number * 7 % 256, number * 31 % 256, number % 256)
    files = {"png": encoded(Image.new("RGB", (size, size), colour)), "txt": f"picture {number}".encode()}
    return {**files, "json": json.dumps(record).encode()} if record else files


def uneven(folder: Path, counts: Iterable[int] = (5, 9, 4), **record: object) -> list[Path]:
    """Shards of so many samples each, with keys 0, 1, 2, ..."""
    paths, number = [], 0
    for shard, count in enumerate(counts):
        with ShardWriter(folder, f"shard-{shard}", 1000) as writer:
            for _ in range(count):
                writer.write(f"{number:04d}", sample(number, **record))
                number += 1
        paths += writer.paths
    return paths
