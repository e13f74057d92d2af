"""What the files of a sample say: its picture, its captions, its record. Imports no PyTorch.

One rule for folders, tables and shards. A .txt holds captions, one a line; a record (.json) holds them as
"captions", "caption" or both; a table's cell is a caption, or a list of them. All of them count, those of
the .txt first; what stands in two of these places counts once. What is no caption (null, a number, text that
is no UTF-8, or more than ``LONGEST`` letters) is left out and named, and the others are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import ConfigError
from ..files import impostor, parse_json

PICTURES = ("webp", "png", "jpg", "jpeg")  # what shards are written with
# What else is read as a picture out of a shard that holds none of those.
OTHERS = ("gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "tga", "svg", "heic", "heif")
USED = frozenset((*PICTURES, *OTHERS, "txt", "json"))  # kinds of files that are read out of a shard
LONGEST = 1 << 20  # letters of a caption, and bytes of a file of captions
RECORD = 1 << 24  # bytes of a record


class NoCaption(ValueError):
    """A sample without a caption; ``unusable``: what stands in its place."""

    def __init__(self, unusable: Sequence[str] = ()) -> None:
        super().__init__("; ".join(["a sample without a caption", *unusable]))
        self.unusable = tuple(unusable)


@dataclass(frozen=True)
class Texts:
    """The captions of a sample, in order; its record; and what was no caption: where it stood, and why."""

    captions: list[str]
    record: dict = field(default_factory=dict)
    unusable: tuple[str, ...] = ()


def picture_of(sample: dict[str, Any]) -> bytes:
    """The file of a raw sample's picture; ``ValueError`` if there is none, or the sample was not read."""
    if "__error__" in sample:
        raise ValueError(sample["__error__"])
    picture = next((sample[kind] for kind in (*PICTURES, *OTHERS) if kind in sample), None)
    if picture is None:
        kinds = ", ".join(kind for kind in sample if not kind.startswith("__"))
        raise ValueError(f"a sample without a picture, only {kinds or 'nothing'}")
    return picture


def texts_of(sample: dict[str, Any]) -> Texts:
    """A raw sample's captions, at least one, and its record; ``ValueError`` if one is missing or damaged."""
    record = record_of(sample["json"]) if "json" in sample else {}
    return joined(sample.get("txt"), record)


def record_of(data: bytes) -> dict:
    """A record's JSON object; ``ValueError`` for what is none, and why."""
    if len(data) > RECORD:
        raise ValueError(f"a record of {len(data):,} bytes, more than {RECORD:,}")
    return parse_json(data, "the record")


def joined(txt: bytes | None, record: dict, cells: Iterable[object] = ()) -> Texts:
    """The captions of a .txt, of a table's cells and of a record; ``NoCaption`` if there is none."""
    captions: list[str] = []
    unusable: list[str] = []
    for place, values in (
        ("the .txt", [] if txt is None else lines_of(txt)),
        ("the table", cells),
        ("the record's captions", _several(record.get("captions"))),
        ("the record's caption", _several(record.get("caption"))),
    ):
        before = set(captions)
        for number, value in enumerate(values, 1):
            if reason := why_not(value):
                unusable.append(f"{place}, number {number}: {reason}")
            elif isinstance(value, str) and value.strip() not in before:
                captions.append(value.strip())
    if not captions and txt is not None and not unusable:
        captions = [""]  # an empty .txt
    if not captions:
        raise NoCaption(unusable)
    return Texts(captions, record, tuple(unusable))


def _several(value: object) -> list[object]:
    """What a record holds of captions: a list of them, one alone, or none."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def lines_of(txt: bytes) -> list[object]:
    """The lines of a file of captions, but for blank ones; all of it as bytes if it is no such file."""
    if len(txt) > LONGEST or impostor(txt[:512]):
        return [txt]
    try:
        return [line for line in txt.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        return [txt]


def why_not(value: object) -> str | None:
    """Why a value is no caption; None for one that is."""
    if not isinstance(value, str | bytes):
        kinds = {
            type(None): "null",
            bool: "true or false",
            int: "a number",
            float: "a number",
            list: "a list",
        }
        return f"{kinds.get(type(value), 'an object')} in place of a caption"
    if len(value) > LONGEST:
        return f"a caption of {len(value):,} letters, more than {LONGEST:,}"
    if isinstance(value, bytes) and (reason := impostor(value[:512])):
        return f"no caption: {reason}"
    try:
        value.decode() if isinstance(value, bytes) else value.encode()
    except UnicodeError:  # such as a byte of another encoding, or half a character
        return "a caption that is no UTF-8 text"
    return None if isinstance(value, str) else "bytes in place of a caption"


def class_of(record: dict, key: str) -> int:
    """The integer "class" of a record, -1 for none; ``ConfigError`` for what is no class."""
    number = record.get("class", -1)
    if isinstance(number, bool) or not isinstance(number, int) or not -1 <= number < 1 << 31:
        raise ConfigError(f"the class of {key} is {number!r:.40}; it must be an integer from 0 on")
    return number
