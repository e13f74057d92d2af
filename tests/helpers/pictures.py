"""How far two pictures lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(picture: Image.Image | Path) -> np.ndarray:
    """Of a picture or its file, as whole numbers that can be subtracted."""
    return np.asarray(Image.open(picture) if isinstance(picture, Path) else picture).astype(int)


def apart(a: Image.Image | Path, b: Image.Image | Path) -> int:
    """The largest difference of a pixel, of 255."""
    return abs(pixels(a) - pixels(b)).max().item()
