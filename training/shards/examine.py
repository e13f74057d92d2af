"""One shard looked through for everything that training would trip over. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unclip.data.indexed import on_disk
from unclip.data.pictures import FULL, PictureError, open_picture
from unclip.data.samples import PICTURES, texts_of
from unclip.data.tars import index, read


class Problem(NamedTuple):
    """What is wrong: its kind, and where."""

    kind: str
    shard: str
    key: str
    reason: str


@dataclass
class Examined:
    """What a shard holds: the keys of its samples, sizes (width, height) of the pictures that can be read,
    the captions, and what is wrong with it.
    """

    shard: str
    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    several: int = 0  # samples with more than one caption
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, key: str, reason: str) -> None:
        self.problems.append(Problem(kind, self.shard, key, reason))


def examine(shard: str) -> Examined:
    """Read a whole shard and decode every picture."""
    found = Examined(shard)
    try:
        for sample in _samples(shard, found):
            if "__error__" in sample:
                found.note("damaged tar", "", sample["__error__"])
            else:
                _sample(sample, found)
    except OSError as error:
        found.note("damaged tar", "", error.strerror or str(error))
    if not found.keys and not found.problems:
        found.note("damaged tar", "", "no sample")
    return found


def _samples(shard: str, found: Examined) -> Iterator[dict[str, Any]]:
    """The raw samples; what is wrong with the tar itself is noted."""
    if not on_disk(shard):
        from unclip.data.reading import stream

        yield from stream(shard)
        return
    content = index(shard)
    for name, reason in content.problems:
        found.note("refused file" if name else "damaged tar", name, reason)
    for entry in content.entries:
        yield read(shard, entry)


def _sample(sample: dict[str, Any], found: Examined) -> None:
    key = sample["__key__"]
    found.keys.append(key)
    picture = next((sample[kind] for kind in PICTURES if kind in sample), None)
    if picture is None:
        found.note("no picture", key, f"only {', '.join(kind for kind in sample if kind[0] != '_')}")
    else:
        try:
            found.sizes.append(open_picture(picture, strict=True).info[FULL])
        except PictureError as error:
            found.note("unreadable picture", key, str(error))
    try:
        captions, _ = texts_of(sample)
    except ValueError as error:
        missing = str(error) == "a sample without a caption"
        found.note("no caption" if missing else "unreadable text", key, str(error))
    else:
        found.captions += captions
        found.several += len(captions) > 1
