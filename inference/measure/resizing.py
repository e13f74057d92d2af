"""What it takes to read a picture at a size, as training does and by Lanczos from the whole picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from unclip.data.pictures import flatten, open_picture, region, square

from .parts import in_turns


def whole(data: bytes, size: int) -> Image.Image:
    """The same square as ``least`` makes, by PIL's Lanczos filter from the whole picture."""
    image = open_picture(data)
    left, top, length, _ = region(image, size)
    box = (left, top, left + length, top + length)
    return flatten(image).resize((size, size), Image.Resampling.LANCZOS, box)


def least(data: bytes, size: int) -> Image.Image:
    """As ``training.data`` reads a picture."""
    return square(open_picture(data, least=size), size)


BOTH = [whole, least]


def compare(files: Sequence[bytes], size: int, turns: int = 9) -> tuple[float, float, float, float]:
    """Of the middle square of picture files, at ``size`` pixels: median seconds a picture from the whole, and
    as training reads it; the median of the ratio of the two in each turn; and the PSNR between them in dB.
    """
    made = [[np.asarray(way(data, size), dtype=np.float64) for data in files] for way in BOTH]
    error = float(np.mean([((a - b) ** 2).mean() for a, b in zip(*made, strict=True)]))
    psnr = 10 * math.log10(255**2 / error) if error else math.inf
    first, second = (partial(_all, way, files, size) for way in BOTH)
    before, now, ratio = in_turns(first, second, turns)
    return before / len(files), now / len(files), ratio, psnr


def _all(way: Callable[[bytes, int], Image.Image], files: Sequence[bytes], size: int) -> None:
    for data in files:
        way(data, size)


def table(rows: Sequence[tuple[int, tuple[float, float, float, float]]]) -> str:
    """(size, what ``compare`` says) as Markdown."""
    lines = [
        "| pixels | Lanczos of the whole (ms) | as training reads (ms) | speed | PSNR (dB) |",
        "|--:" * 5 + "|",
    ]
    lines += [
        f"| {size} | {1000 * a:.2f} | {1000 * b:.2f} | {ratio:.2f}x | {psnr:.1f} |"
        for size, (a, b, ratio, psnr) in rows
    ]
    return "\n".join(lines)
