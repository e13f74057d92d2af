"""Pictures: between PIL and tensors in [-1, 1], many in a grid, and safely into a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import named
from ..provenance import png_info
from .pictures import flatten

LEVEL = 4  # of PNG's compression: half the time of PIL's own, and 2% more bytes


def to_tensor(image: Image.Image, background: str = "white") -> Tensor:
    """Any PIL picture as float32 [3,H,W] in [-1,1]; what is transparent shows ``background``."""
    pixels = torch.from_numpy(np.array(flatten(image, background)))  # [H,W,3] uint8
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """A picture [3,H,W] in [-1,1], on any device, as PIL RGB; values outside are clamped."""
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture is [3,H,W], not {list(image.shape)}")
    pixels = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(pixels.byte().permute(1, 2, 0).cpu().contiguous().numpy())


def grid(
    images: Tensor,  # [N,3,H,W] in [-1,1]
    columns: int | None = None,  # pictures in a row; None makes the grid about square
    gap: int = 2,  # white pixels between two pictures
) -> Image.Image:
    """All pictures in one, row by row; the last row is filled up with white."""
    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"pictures are [N,3,H,W] with N at least 1, not {list(images.shape)}")
    columns = min(columns or round(len(images) ** 0.5), len(images))
    if columns < 1:
        raise ValueError(f"a grid has at least 1 column, not {columns}")
    rows = -(-len(images) // columns)
    height, width = images.shape[2:]
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_pil(image), (column * (width + gap), row * (height + gap)))
    return sheet


def save_png(image: Image.Image, path: str | Path, metadata: bool = True) -> None:
    """Write a PNG whole or not at all; its folder is made if need be. Raises ``OSError``.

    metadata: whether it says how it was made, if the picture does (see ``provenance``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            image.save(file, "PNG", compress_level=LEVEL, pnginfo=png_info(image) if metadata else None)
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
