"""Pictures out of files: any mode that PIL can open, upright, eight bits, and nothing that hurts.

Imports no PyTorch before ``square`` is called, so that the processes of ``training.shards`` start at once.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from ..files import impostor
from .formats import PictureError, formats, opened

PIXELS = 89_478_485  # the largest picture that is decoded: PIL's own limit against decompression bombs
GAP = 3  # averaging cells shrinks a picture to no less than this multiple of the size asked for
FRACTIONS = (1, 2, 4, 8)  # of its size that a JPEG can be decoded at
FULL = "size in the file"  # of a picture's info: width and height, whatever it was decoded at


def open_picture(
    data: bytes,
    least: float | None = None,  # what the shorter side is needed at; a JPEG may then be decoded smaller
    pixels: int = PIXELS,  # of a larger picture nothing is decoded
    strict: bool = False,  # refuse checksums that are wrong, too, which decoding alone passes over
) -> Image.Image:
    """A file's (first) picture, decoded whole, turned upright by its EXIF tag: RGB, or RGBA if transparent.

    With ``least``, libjpeg may shrink by 2, 4 or 8 while it decodes (PIL's draft mode), as long as the
    shorter side stays at least as long: an average over cells, as ``Image.resize`` takes it with
    ``reducing_gap``, but without the work. A drawing (SVG) is made that large. Raises ``PictureError`` for
    whatever cannot be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what is decided below
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # of a picture inside another
            data = opened(data, least, pixels)
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats())
            if image.width * image.height > pixels:
                raise PictureError(f"{image.width} x {image.height} pixels are more than {pixels:,}")
            if strict:  # which leaves the picture unusable
                Image.open(io.BytesIO(data), formats=formats()).verify()
            full = size_of(image)
            if least is not None:
                image.draft(None, (max(1, round(least)),) * 2)
            image.load()
            image = plain(_upright(image))
            image.info[FULL] = full
            return image
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        reason = impostor(data[:512]) or "this is no picture"
        raise PictureError(reason if data else "an empty file") from None
    except Exception as error:  # PIL's readers raise whatever their parsing of a broken file runs into
        raise PictureError(f"{type(error).__name__}: {error}") from None


def size_of(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it stands upright, though it was not turned yet, nor decoded."""
    return image.size[::-1] if orientation(image) >= 5 else image.size


def orientation(image: Image.Image) -> int:
    """EXIF's tag of which side is up: 1 to 8; 1 where there is none, or the EXIF is broken."""
    try:
        tag = image.getexif().get(0x0112, 1)
    except Exception:  # a picture is no worse for broken facts about it
        return 1
    return tag if tag in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def plain(image: Image.Image) -> Image.Image:
    """Any mode as RGB, or as RGBA where something is transparent; what has more bits is scaled to eight."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.mode == "La":
        image = _unmultiplied(image)
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats: the range that its type and its values suggest, as 0 to 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    span = next((span for span in ranges if top <= span), top)
    return Image.fromarray((values.clip(0) * (255 / span)).round().astype(np.uint8))


def _unmultiplied(image: Image.Image) -> Image.Image:
    """Grey that was multiplied by its transparency, which PIL converts to nothing, as LA."""
    grey, alpha = (np.asarray(image.getchannel(k), dtype=np.float64) for k in (0, 1))
    grey = np.divide(grey * 255, alpha, out=np.zeros_like(grey), where=alpha > 0).clip(0, 255)
    return Image.merge("LA", [Image.fromarray(part.round().astype(np.uint8)) for part in (grey, alpha)])


def flatten(image: Image.Image, background: str = "white") -> Image.Image:
    """Any mode as RGB; what is transparent shows ``background``, a colour as CSS writes it."""
    image = plain(image)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, colour(background))
        image = Image.alpha_composite(paper, image).convert("RGB")
    return image


def colour(name: str) -> tuple[int, int, int]:
    """A colour as CSS writes it ("white", "#c0ffee", "rgb(1, 2, 3)"), as RGB; ``ValueError`` for others."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(f"{name!r} is no colour; write white, #808080 or rgb(128, 128, 128)") from None


def square(
    image: Image.Image,
    size: int,  # pixels a side
    side: float = 1.0,  # of the square that is cut out, as a share of the shorter side
    place: tuple[float, float] = (0.5, 0.5),  # where it lies: 0 left or top, 1 right or bottom
    background: str = "white",  # behind what is transparent
) -> Image.Image:
    """A square of a picture, resized (antialiased Lanczos): RGB."""
    left, top, length, _ = region(image, size, side, place)
    image = flatten(image, background)
    if image.size == (size, size) and side == 1.0:
        return image
    cells, end = max(1, int(length / size / GAP)), math.ceil(length)
    return _resized(image.reduce(cells, (left, top, left + end, top + end)), length / cells, size)


def region(
    image: Image.Image, size: int, side: float = 1.0, place: tuple[float, float] = (0.5, 0.5)
) -> tuple[int, int, float, int]:
    """Which square ``square`` cuts out: left, top and length, and how many pixels a side of the picture in
    its file were decoded as one, in which the three count.

    It is the same whatever a JPEG was decoded at: it begins at a multiple of 8, 4 or 2 pixels of the file,
    where those are no more than one of what is made.
    """
    full = image.info.get(FULL, image.size)
    fits = (f for f in FRACTIONS if image.size == tuple(-(-one // f) for one in full))  # rounded up
    fraction = next(fits, 0)
    if not fraction:  # it was changed since
        full, fraction = image.size, 1
    length = max(1, round(side * min(full)))
    grain = max(f for f in FRACTIONS if f == 1 or f * size <= length)
    corner = (int((one - length) * at) // grain * grain for one, at in zip(full, place, strict=True))
    left, top = (at // fraction for at in corner)
    return left, top, length / fraction, fraction


def _resized(image: Image.Image, length: float, size: int) -> Image.Image:
    """The first ``length`` pixels a side of an RGB picture, resized by PyTorch's Lanczos filter where it has
    one: twice as fast as PIL's, and the same but for rounding.
    """
    import torch

    if image.width == length == size:
        return image
    if not hasattr(torch._C._nn, "_upsample_lanczos2d_aa"):
        return image.resize((size, size), Image.Resampling.LANCZOS, (0, 0, length, length))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # [1,3,H,W] uint8
    scale = size / length  # which F.interpolate takes only in the place of a size
    made = torch._C._nn._upsample_lanczos2d_aa(pixels, (size, size), False, scale, scale)  # type: ignore
    return Image.fromarray(made[0].permute(1, 2, 0).contiguous().numpy())
