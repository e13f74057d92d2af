"""One shard looked through for everything that training would trip over. Imports no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unclip.data.addresses import is_address
from unclip.data.formats import PictureError, unread
from unclip.data.indexed import on_disk, stated
from unclip.data.pictures import FULL, open_picture
from unclip.data.samples import NoCaption, class_of, picture_of, texts_of
from unclip.data.tars import index, read

from .captions import is_file_name, is_mixed


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
    mixed: int = 0  # ... of several scripts
    named: list[bool] = field(default_factory=list)  # whether each caption is a file's name
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, key: str, reason: str) -> None:
        self.problems.append(Problem(kind, self.shard, key, reason))


def examine(shard: str) -> Examined:
    """Read a whole shard and decode every picture."""
    report = Examined(shard)
    try:
        for sample in _samples(shard, report):
            if "__error__" in sample:
                report.note("damaged tar", "", sample["__error__"])
            else:
                _sample(sample, report)
    except (OSError, ValueError) as error:
        report.note("damaged tar", "", getattr(error, "strerror", None) or str(error))
    if not report.keys and not report.problems:
        report.note("damaged tar", "", "no sample")
    if not is_address(shard) and (entry := stated(shard)) is not None:
        there = {"bytes": os.path.getsize(shard), "samples": len(report.keys)}
        for what, count in there.items():
            if entry[what] != count:
                report.note("other than its manifest", "", f"{count:,} {what}, not {entry[what]:,}")
    return report


def _samples(shard: str, report: Examined) -> Iterator[dict[str, Any]]:
    """The raw samples; what is wrong with the tar itself is noted."""
    if on_disk(shard):
        content = index(shard)
        problems = content.problems
        yield from (read(shard, entry) for entry in content.entries)
    else:
        from unclip.data.reading import stream

        refused: dict[str, str] = {}
        yield from stream(shard, problems=refused)
        problems = refused.items()
    for name, reason in problems:
        report.note("refused file" if name else "damaged tar", name, reason)


def _sample(sample: dict[str, Any], report: Examined) -> None:
    key = sample["__key__"]
    report.keys.append(key)
    try:
        report.sizes.append(open_picture(picture_of(sample), strict=True).info[FULL])
    except PictureError as error:
        report.note("unreadable picture", key, str(error))
    except ValueError as error:
        reasons = [reason for kind in sample if (reason := unread(f"a.{kind}"))]
        report.note("no picture", key, "; ".join([str(error), *reasons]))
    try:
        texts = texts_of(sample)
    except NoCaption as error:
        report.note("unreadable text" if error.unusable else "no caption", key, str(error))
        return
    except ValueError as error:
        report.note("unreadable text", key, str(error))
        return
    report.captions += texts.captions
    report.named += [is_file_name(one, key) for one in texts.captions]
    report.several += len(texts.captions) > 1
    report.mixed += is_mixed(texts.captions)
    for reason in texts.unusable:
        report.note("unusable caption", key, reason)
    try:
        class_of(texts.record, key)
    except ValueError as error:
        report.note("no class", key, str(error))
