"""One sample of somebody's data as the files of a shard, or why it is left out. Imports no PyTorch."""

from __future__ import annotations

import io
import json
import stat
import unicodedata
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from PIL import Image

from unclip.data.pictures import FULL, GAP, PIXELS, flatten, open_picture, orientation
from unclip.data.tars import LARGEST

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
    pixels: int = PIXELS  # larger pictures are not decoded


@dataclass(frozen=True)
class Item:
    """One sample as it was found.

    picture: its bytes, its file, or (tar, first byte, bytes); None if there is none.
    text: its captions, or the file with one on each line; None if there are none.
    """

    name: str  # as the user knows it
    key: str
    picture: bytes | Path | tuple[Path, int, int] | None = None
    text: tuple[str, ...] | Path | None = None
    record: dict | Path = field(default_factory=dict)
    problem: str | None = None  # why it is left out, if that is known already


@dataclass(frozen=True)
class Made:
    """The files of a sample by kind, and how many captions and pixels (width, height) it has."""

    files: dict[str, bytes]
    captions: int
    size: tuple[int, int]


class Left(ValueError):
    """Why a sample is left out."""


def prepare(item: Item, options: Options) -> Made | str:
    """The sample, or why it is left out; the same for the same arguments."""
    try:
        if item.problem is not None:
            raise Left(item.problem)
        captions, record = _captions(item, options), _record(item)
        picture, kind, size = _picture(_bytes(item.picture), options)
    except (ValueError, OSError, MemoryError) as error:
        return _clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    if len(captions) > 1:
        record = {**record, "captions": captions}
    files = {kind: picture, "txt": captions[0].encode()}
    if record:
        text = json.dumps(record, ensure_ascii=False, sort_keys=True, default=str)
        files["json"] = text.encode("utf-8", "replace")
    return Made(files, len(captions), size)


def _bytes(picture: bytes | Path | tuple[Path, int, int] | None) -> bytes:
    if picture is None:
        raise Left("a caption without a picture")
    if isinstance(picture, bytes):
        return picture
    path, offset, length = picture if isinstance(picture, tuple) else (picture, 0, None)
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise Left("this is no file")
    length = facts.st_size if length is None else length
    if length > LARGEST:
        raise Left(f"{length:,} bytes are more than {LARGEST:,}")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _captions(item: Item, options: Options) -> list[str]:
    """At least one caption, each on one line; a caption that comes twice is kept once."""
    if isinstance(item.text, Path):
        try:
            lines = item.text.read_text(encoding="utf-8-sig").splitlines() if item.text.is_file() else []
        except UnicodeDecodeError:
            raise Left("a caption that is no UTF-8 text") from None
    else:
        lines = item.text or ()
    captions = list(dict.fromkeys(filter(None, (_clean(" ".join(line.split())) for line in lines))))
    if not captions and not options.uncaptioned:
        raise Left("a picture without a caption" if item.text is None else "an empty caption")
    return captions or [""]


def _record(item: Item) -> dict:
    if not isinstance(item.record, Path):
        return item.record
    try:
        record = json.loads(item.record.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise Left("a record that is no JSON") from None
    if not isinstance(record, dict):
        raise Left("a record that is no JSON object")
    return record


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
    raw = Image.open(io.BytesIO(data))
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
