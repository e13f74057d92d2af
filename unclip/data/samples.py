"""What the files of a sample say: its picture, its captions, its record. Imports no PyTorch."""

from __future__ import annotations

import json
from typing import Any

PICTURES = ("webp", "png", "jpg", "jpeg")


def picture_of(sample: dict[str, Any]) -> bytes:
    """The file of a raw sample's picture; ``ValueError`` if there is none, or the sample was not read."""
    if "__error__" in sample:
        raise ValueError(sample["__error__"])
    picture = next((sample[kind] for kind in PICTURES if kind in sample), None)
    if picture is None:
        raise ValueError("a sample without a picture")
    return picture


def texts_of(sample: dict[str, Any]) -> tuple[list[str], dict]:
    """A raw sample's captions, at least one, and its record; ``ValueError`` for what is missing."""
    try:
        record = json.loads(sample.get("json", b"{}"))
    except RecursionError:
        raise ValueError("a record that is too deep") from None
    if not isinstance(record, dict):
        raise ValueError("a record that is no JSON object")
    captions = record.get("captions") or [record.get("caption")]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        captions = []
    if "txt" in sample:
        first = sample["txt"].decode("utf-8").strip()
        captions = [first, *(caption for caption in captions[1:] if record.get("captions"))]
    if not captions:
        raise ValueError("a sample without a caption")
    return [caption.strip().encode("utf-8", "replace").decode() for caption in captions], record
