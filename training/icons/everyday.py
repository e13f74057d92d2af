"""Words of everyday life that are no icon's name, and the drawings that they mean: ``everyday.txt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .colours import OBJECTS
from .nouns import Noun, noun
from .traits import Traits


class Word(NamedTuple):
    """A word, the names of the icons that it means, and the colour that is part of its meaning."""

    noun: Noun
    names: tuple[str, ...]
    colour: str | None


class Meaning(NamedTuple):
    """A word, the pictures (indices) that may be shown for it, and the colour to paint each, if any."""

    noun: Noun
    pictures: tuple[tuple[int, str | None], ...]


def words() -> list[Word]:
    """The table, in the order of the file."""
    lines = (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8").splitlines()
    listed = []
    for line in lines:
        if line and not line.startswith("#"):
            word, names, *colour = (part.strip() for part in line.split("|"))
            names = tuple(name.strip() for name in names.split(","))
            listed.append(Word(noun(word), names, *colour or [None]))
    return listed


def meanings(records: Sequence[Mapping], traits: Traits) -> list[Meaning]:
    """What each word may show of M pictures; words without any are left out.

    A picture that has another colour than the word's is painted; one that cannot be is not shown.
    """
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        rows.setdefault(record["name"], []).append(row)
    paintable, listed = frozenset(traits.paintable), []
    for word in words():
        shown = [
            (row, None if traits.colour[row] == word.colour else word.colour)
            for name in word.names
            for row in rows.get(name, ())
        ]
        shown = [
            (row, colour) for row, colour in shown if colour is None or row in paintable and colour in OBJECTS
        ]
        if shown:
            listed.append(Meaning(word.noun, tuple(shown)))
    return listed
