"""What of a client's picture is drawn anew: there what is fully transparent, here what is white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...data.pictures import flatten
from .errors import Refused

SIDE = 1024  # pixels of a side that are kept of a larger picture


def one_size(picture: Image.Image) -> Image.Image:
    """The middle square of a picture, of at most ``SIDE`` pixels: what waits takes so much memory."""
    square = _middle(picture)
    if square.width <= SIDE:
        return square
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3)


def hole_of(picture: Image.Image, mask: Image.Image | None) -> tuple[Image.Image, Image.Image] | None:
    """The middle square of a picture (RGB), and in white what of it is drawn anew (L); None for nothing.

    mask: of the picture's size; None: the picture's own transparency is meant.

    Raises ``Refused`` for a mask of another size, or one in whose middle square nothing is transparent.
    """
    if mask is not None and mask.size != picture.size:
        raise Refused(
            f"Invalid value for 'mask': it is {mask.width} x {mask.height} pixels, the image "
            f"{picture.width} x {picture.height}: they must be of one size",
            param="mask",
            code="invalid_image",
        )
    shown = _middle(picture if mask is None else mask)
    clear = np.asarray(shown.getchannel("A")) == 0 if shown.mode == "RGBA" else np.zeros(1, bool)
    if not clear.any():
        if mask is None:
            return None
        raise Refused(
            "Invalid value for 'mask': nothing of it (in the middle square) is fully transparent, which is "
            "what is drawn anew",
            param="mask",
            code="invalid_image",
        )
    white = Image.fromarray(clear.astype(np.uint8) * 255)
    image = one_size(flatten(picture))
    if white.size != image.size:  # of a larger picture: all of a pixel that is touched
        white = white.resize(image.size, Image.Resampling.BOX).point(lambda value: 255 if value else 0)
    return image, white


def _middle(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
