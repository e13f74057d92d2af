"""One sample of somebody's data as the files of a shard, or why it is left out. Imports no PyTorch."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from PIL import Image

from unclip.data.formats import formats
from unclip.data.pictures import FULL, GAP, PIXELS, flatten, open_picture, orientation
from unclip.data.samples import LONGEST, RECORD, NoCaption, Texts, joined, record_of
from unclip.data.tars import LARGEST
from unclip.files import read_whole

KINDS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # PIL's names of what shards hold


@dataclass(frozen=True)
class Options:
    """What is made of the pictures."""

    size: int | None = None  # larger pictures are shrunk to this shorter side; None: left as they are
    min_size: int = 1  # pictures with a shorter side are left out
    max_aspect: float | None = None  # pictures with a longer side of more than this times the shorter, too
    background: str = "white"  # what is put behind transparency
    format: str = "keep"  # "jpg", "png", "webp"; "keep": as they are, where a shard can hold that
    quality: int = 95  # of jpg and webp that are written anew
    uncaptioned: bool = False  # take pictures without a caption, too
    first: bool = False  # of several captions take the first alone
    pixels: int = PIXELS  # larger pictures are not decoded


Place = bytes | Path | tuple[Path, int, int]


@dataclass(frozen=True)
class Item:
    """One sample as it was found.

    picture, text and record are what they hold as bytes, a file, or (tar, first byte, bytes); None if there
    is none. text: captions, one a line. cells: what a table holds in place of captions.
    """

    name: str  # as the user knows it
    key: str
    picture: Place | None = None
    text: Place | None = None
    record: Place | dict = field(default_factory=dict)
    cells: tuple[object, ...] = ()
    problem: str | None = None  # why it is left out, if that is known already


@dataclass(frozen=True)
class Made:
    """The files of a sample by kind, how many captions and pixels (width, height) it has, and what was left
    out of its captions, with the reason.
    """

    files: dict[str, bytes]
    captions: int
    size: tuple[int, int]
    unusable: tuple[str, ...] = ()


class Left(ValueError):
    """Why a sample is left out."""


def prepare(item: Item, options: Options) -> Made | str:
    """The sample, or why it is left out; the same for the same arguments."""
    try:
        if item.problem is not None:
            raise Left(item.problem)
        captions, record, unusable = _texts(item, options)
        if item.picture is None:
            raise Left("a caption without a picture")
        picture, kind, size = _picture(_bytes(item.picture), options)
    except (ValueError, OSError, MemoryError) as error:
        return _clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    if len(captions) > 1:
        record = {**record, "captions": captions}
    files = {kind: picture, "txt": captions[0].encode()}
    if record:
        files["json"] = _json(record)
    return Made(files, len(captions), size, unusable)


def _json(record: dict) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, sort_keys=True, default=str).encode()
    except UnicodeEncodeError:  # half a character
        return json.dumps(record, sort_keys=True, default=str).encode()


def _bytes(place: Place, most: int = LARGEST) -> bytes:
    """What lies there; ``ValueError`` if that is more than ``most`` bytes, or no file."""
    if isinstance(place, Path):
        try:
            return read_whole(place, most)
        except ValueError as error:  # it names the path; what is left out is named already
            raise Left(str(error).replace(str(place), "this")) from None
    if isinstance(place, bytes):
        return place
    path, offset, length = place
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _texts(item: Item, options: Options) -> tuple[list[str], dict, tuple[str, ...]]:
    """At least one caption, each on one line and none twice; the rest of the record; what is no caption."""
    record = item.record if isinstance(item.record, dict) else record_of(_bytes(item.record, RECORD))
    text = None if item.text is None else _bytes(item.text, LONGEST)
    try:
        texts = joined(text, record, item.cells)
    except NoCaption as error:
        texts = Texts([], record)
        if error.unusable or not options.uncaptioned:
            raise Left("; ".join(error.unusable) or "a picture without a caption") from None
    captions = list(dict.fromkeys(filter(None, (_clean(" ".join(one.split())) for one in texts.captions))))
    if not captions and not options.uncaptioned:
        raise Left("an empty caption")
    rest = {key: value for key, value in record.items() if key not in ("captions", "caption")}
    return captions[: 1 if options.first else None] or [""], rest, texts.unusable


def _picture(data: bytes, options: Options) -> tuple[bytes, str, tuple[int, int]]:
    """A picture's file for the shard, its kind, and its size in pixels."""
    least = None if options.size is None else GAP * options.size
    image = open_picture(data, least, options.pixels, strict=True)
    size = image.info[FULL]
    short, long = sorted(size)
    if short < options.min_size:
        raise Left(f"a side of {short} pixels is shorter than {options.min_size}")
    if options.max_aspect is not None and long > options.max_aspect * short:
        raise Left(f"{size[0]} x {size[1]} pixels are longer than 1 : {options.max_aspect:g}")
    shrinks = options.size is not None and short > options.size
    held = _held_as(data, image)
    if held is not None and not shrinks and options.format in ("keep", held):
        return data, held, size
    image = flatten(image, options.background)
    if shrinks:
        size = tuple(max(1, round(side * options.size / short)) for side in size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=GAP)
    kind = options.format
    if kind == "keep":
        kind = "jpg" if data[:2] == b"\xff\xd8" else "png"
    return _encoded(image, kind, options.quality), kind, size


def _held_as(data: bytes, image: Image.Image) -> str | None:
    """What a file is called in a shard if it can stay as it is: still, upright, 8-bit RGB or grey, opaque."""
    try:
        raw = Image.open(io.BytesIO(data), formats=formats())
    except Image.UnidentifiedImageError:
        return None
    plain = raw.mode in ("RGB", "L") and image.mode == "RGB" and raw.size == image.info[FULL]
    upright = orientation(raw) == 1
    return KINDS.get(raw.format) if plain and upright and getattr(raw, "n_frames", 1) == 1 else None


def _encoded(image: Image.Image, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    if kind == "png":
        image.save(file, "PNG")
    elif kind == "webp":
        image.save(file, "WEBP", quality=quality, method=4)
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _clean(text: str) -> str:
    """Text that can be written: without lone halves of characters, and without what controls a terminal."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text).strip()


def key_of(name: str) -> str:
    """A key that webdataset takes, from any name: letters, digits, "-", "_", "/"; no way out of a folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    parts = ["".join(c if c.isalnum() or c == "-" else "_" for c in part).strip("_") or "_" for part in parts]
    key = "/".join(parts) or "_"
    if len(key.encode()) > 180:
        key = f"{key[:40]}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return key
