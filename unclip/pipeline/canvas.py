"""Pictures of the user's: opened, fitted, or a canvas of which a part is painted anew."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..data.images import to_tensor
from ..data.pictures import PictureError, open_picture, orientation, plain, square
from ..files import read_whole
from ..provenance import SOURCE, Argument, Taken, taken
from ..stages.inpaint import known_part

Picture = Image.Image | str | Path
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}  # files, not texts
BYTES = 1 << 30  # the largest file of a picture that is read


@dataclass(frozen=True)
class Canvas:
    """A square picture, and where it is painted anew: bool [1,1,H,W]."""

    picture: Image.Image
    repaint: Tensor

    def at(self, size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The picture [1,3,S,S] in [-1,1] and the mask [1,1,S,S] of a stage of ``size``, 1 = known.

        The picture is resized as in GLIDE's notebook. Of the mask a pixel is kept only if all that it
        covers is kept, so that nothing of what is to go shows through at a coarse size.
        """
        image = to_tensor(self.picture.resize((size, size), Image.Resampling.BICUBIC))[None]
        known = 1 - F.adaptive_max_pool2d(self.repaint.float(), size)
        return image.to(device), known.to(device)

    def known(self, like: Tensor) -> Tensor:
        """What is known at the size of pictures [N,3,S,S], as [N,4,S,S] of their device and type."""
        return known_part(*self.at(like.shape[-1]), like)


def opened(picture: Picture) -> Image.Image:
    """A picture of PIL, or of a regular file: upright, RGB, or RGBA where something is transparent.

    Raises ``ValueError`` for a file that is none, is no picture, or has too many bytes or pixels, or none.
    """
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise ValueError(f"the picture is {picture.width} x {picture.height} pixels: it shows nothing")
        return plain(picture if orientation(picture) == 1 else ImageOps.exif_transpose(picture))
    if not isinstance(picture, str | Path):
        raise ValueError(f"a picture is one of PIL or the path of a file, not {type(picture).__name__}")
    try:
        image = open_picture(read_whole(picture, BYTES))
    except PictureError as error:
        raise ValueError(f"{picture} cannot be used as a picture: {error}") from None
    image.info[SOURCE] = Path(picture).name
    return image


def end_of(end: Picture, text: bool = True) -> Image.Image | str:
    """A picture, of PIL or of a file; or a text, which is what does not end as a picture's file does."""
    return end if text and isinstance(end, str) and Path(end).suffix.lower() not in SUFFIXES else opened(end)


def fitted(picture: Picture, size: int) -> Tensor:
    """The middle square of a picture as a tensor [1,3,S,S] in [-1,1]; what is transparent is white."""
    return to_tensor(square(opened(picture), size))[None]


def canvas_of(image: Picture, mask: Picture) -> Canvas:
    """A picture and its mask, of one size: white is painted anew, black is kept.

    Only the middle square of them is used. Raises ``ValueError`` if the sizes differ or the mask has no
    white in that square, and as ``opened`` does.
    """
    image, mask = opened(image), opened(mask)
    if image.size != mask.size:
        raise ValueError(
            f"the mask is {mask.width} x {mask.height} pixels, the picture {image.width} x "
            f"{image.height}: they must be of one size"
        )
    side = min(image.size)
    if image.width != image.height:
        warnings.warn(
            f"the picture is {image.width} x {image.height} pixels; only its middle square is used",
            stacklevel=3,
        )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image, mask = (one.crop((left, top, left + side, top + side)) for one in (image, mask))
    repaint = torch.from_numpy(np.array(mask.convert("L")) >= 128)
    if not repaint.any():
        raise ValueError("the mask is black all over, and black is kept: there is nothing to paint anew")
    return Canvas(image, repaint[None, None])


def said_of(value: object) -> Argument:
    """An argument as a record has it: of pictures and tensors their sums."""
    if isinstance(value, Image.Image):
        return taken(value)
    if isinstance(value, Tensor):
        return Taken(sha256=hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest())
    if isinstance(value, list):
        return [(cast(Taken | str | None, said_of(part)), weight) for part, weight in value]
    return cast(Argument, value)
