"""Rows of prompts in, pictures out: in blocks, of which rows of equal options share a run of the network."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from ..options import Asked
from ..pipeline import edits
from ..pipeline.checks import integer
from ..pipeline.drawing import drawn
from ..pipeline.pipeline import Pipeline
from ..pipeline.prompts import cuts
from ..pipeline.request import Wish, wish_of
from .asking import Ask, ask_of, wish_for
from .joined import joined
from .reading import Row, Unusable

BLOCK = 64  # rows that are looked at together


@dataclass(frozen=True)
class How:
    """What holds for all rows that say nothing else."""

    n: int = 1
    seed: int = 0
    batch_size: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path(".")  # that rows name pictures in


@dataclass
class Entry:
    """A row of a block: what it asks for, or why it cannot be drawn."""

    line: int
    ask: Ask | None
    n: int = 0
    seed: int = 0
    wish: Wish | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()


Cell = tuple[int, int]
"""A picture of a block: the number of its row there, and k."""


def how_of(pipeline: Pipeline, n: int, seed: int, batch_size: int, folder: Path, options: Asked) -> How:
    """The same, checked: ``ValueError`` for what no row could be drawn with."""
    prompt = "a goldfish" if pipeline.takes_prompt else None
    settings = wish_of(pipeline, prompt, n=n, seed=seed, **options).options
    asked = settings.model_dump(mode="json", exclude_defaults=True)
    return How(n, seed, integer("batch_size", batch_size, 1), asked, folder)


class Block:
    """Some rows, and the batches that their pictures are drawn in; these depend on rows and ``how`` alone."""

    def __init__(self, pipeline: Pipeline, rows: Sequence[Row], how: How) -> None:
        self.pipeline, self.how, self.most = pipeline, how, how.batch_size
        self.entries = [self._entry(row) for row in rows]
        together: dict[str, list[Cell]] = {}
        for number, entry in enumerate(self.entries):
            if entry.ask is not None:
                key = str(number) if entry.wish is None else json.dumps(entry.ask.options, sort_keys=True)
                together.setdefault(key, []).extend((number, k) for k in range(entry.n))
        size = how.batch_size
        self.batches = [
            cells[at : at + size] for cells in together.values() for at in range(0, len(cells), size)
        ]

    def _entry(self, row: Row) -> Entry:
        try:
            ask = ask_of(row, self.how.options, self.how.folder, self.pipeline.size)
            n = 1 if ask.verb == "upscale" else ask.n or self.how.n
            entry = Entry(row.line, ask, n, self.how.seed if ask.seed is None else ask.seed)
            if ask.verb == "generate":
                if ask.prompt is None and self.pipeline.takes_prompt:
                    raise Unusable("the row has no prompt")
                entry.wish = wish_for(self.pipeline, ask, entry.n, entry.seed, self.how.folder)
                texts = [text for text in (ask.prompt, entry.wish.options.negative_prompt) if text]
                entry.notes = tuple(
                    cut for text in texts for cut in cuts(text, self.pipeline.clip, self.pipeline.tokenizer)
                )
        except ValueError as error:
            return Entry(row.line, None, reason=str(error))
        return entry

    def draw(self, cells: Sequence[Cell]) -> list[tuple[Cell, Image.Image]]:
        """The pictures of a batch; of a row that turns out not to be drawable none, and it says why."""
        numbers = list(dict.fromkeys(number for number, _ in cells))
        first = self.entries[numbers[0]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the prompt is longer")  # which the entry notes
            if first.wish is not None:
                wishes = [
                    self._wish(self.entries[number]).rows([k for one, k in cells if one == number])
                    for number in numbers
                ]
                return list(zip(cells, self._pictures(joined(wishes)), strict=True))
            try:
                return list(zip(cells, self._with_picture(first, [k for _, k in cells]), strict=True))
            except ValueError as error:
                first.reason = first.reason or str(error)
                return []

    def _wish(self, entry: Entry) -> Wish:
        assert entry.wish is not None
        return entry.wish

    def _with_picture(self, entry: Entry, ks: list[int]) -> list[Image.Image]:
        """Pictures of a row that has a picture of its own."""
        ask, folder = entry.ask, self.how.folder
        assert ask is not None
        if ask.verb == "upscale":
            given = folder / str(ask.image)
            return [edits.upscale(self.pipeline, given, ask.prompt, entry.seed, self.most, **ask.options)]
        wish = wish_for(self.pipeline, ask, entry.n, entry.seed, folder)
        return self._pictures(wish.rows(ks))

    def _pictures(self, wish: Wish) -> list[Image.Image]:
        """All of a wish, in fewer at a time from the moment on that memory runs out."""
        if len(wish) > self.most:
            return [picture for part in wish.batches(self.most) for picture in self._pictures(part)]
        try:
            return list(drawn(self.pipeline, [wish]))
        except Exception as error:
            if len(wish) == 1 or not no_memory(error):
                raise
        self.most = len(wish) // 2
        _empty_cache()
        return self._pictures(wish)


def digest_of(rows: Sequence[Row], n: int) -> str:
    """Of what the rows of a block say, where those that say nothing else have ``n`` pictures."""
    said = [
        (row.line, str(row.values) if isinstance(row.values, Unusable) else dict(row.values)) for row in rows
    ]
    return hashlib.sha256(json.dumps([n, said], default=repr).encode()).hexdigest()[:16]


def no_memory(error: Exception) -> bool:
    """Whether a device, or the computer, has run out of memory."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    words = ("out of memory", "not enough memory", "allocate memory")
    return (
        "OutOfMemoryError" in kinds
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def blocks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of ``size``."""
    rest = iter(rows)
    while block := list(islice(rest, size)):
        yield block


def draw(
    pipeline: Pipeline,
    rows: Iterable[Mapping[str, Any] | str],
    *,
    n: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    folder: str | Path = ".",
    **options: Unpack[Asked],
) -> Iterator[dict[str, Any]]:
    """Pictures of rows, as they come: the function under ``unclip batch``, for engines of others.

    rows:    prompts, or mappings with ``prompt`` and whatever else a row may say (see ``asking.Ask``); they
             are read ``BLOCK`` at a time, so there may be any number.
    n, seed: of a row that has none of its own.
    folder:  that rows name pictures in, and not outside of it.
    options: fields of ``Options``, for rows that have none of their own.

    Yields the row's own values with ``row`` (its number, from 0), ``k``, ``seed`` and ``picture`` for each of
    its pictures; with ``row`` and ``error`` for a row that cannot be drawn. Picture k of a row depends on the
    row, k, ``seed`` and options alone (but for rounding, which depends on ``batch_size``). Raises
    ``ValueError`` for options that no row could be drawn with.
    """
    how = how_of(pipeline, n, seed, batch_size, Path(folder), options)
    given = ({"prompt": row} if isinstance(row, str) else row for row in rows)
    at = 0
    for values in blocks((Row(number, one) for number, one in enumerate(given)), BLOCK):
        block = Block(pipeline, values, how)
        for cells in block.batches:
            for (number, k), picture in block.draw(cells):
                own, entry = values[number].values, block.entries[number]
                assert not isinstance(own, Unusable)
                yield {**own, "row": at + number, "k": k, "seed": entry.seed, "picture": picture}
        for number, entry in enumerate(block.entries):
            own = values[number].values
            if entry.reason is not None and not isinstance(own, Unusable):
                yield {**own, "row": at + number, "error": entry.reason}
        at += len(values)
