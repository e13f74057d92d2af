"""What is known of each picture before any scene is made of it, worked out once at loading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from random import Random

import torch
from torch import Tensor

from . import captions, colours, compose
from .nouns import noun

# Words of names whose picture holds letters or figures, or whose left and right matter.
_SIDED = frozenset(
    "left right leftwards rightwards arrow clock oclock thirty letter sign flag button keycap "
    "keyboard calendar newspaper book abacus chart decreasing increasing card map atm watch "
    "stopwatch speaker note notes score musical guitar label badge ticket tickets die memo "
    "document dollar euro pound yen clockwise counterclockwise police ambulance question counter "
    "store hotel bank hospital school office post stop fuel cinema slot mahjong piano americas "
    "asia europe japan dna facing compass thermometer zzz symbols medal indicator pushing scroll "
    "ballot page screen computer globe hundred soon taxi walking "
    "running kneeling cane wheelchair money mail racing moon crescent quarter".split()
)
_COLOURABLE = frozenset("activities animals food objects travel".split())
_OWN_COLOUR = frozenset(
    "face sun moon fire rainbow blood clock thirty heart globe necktie mahjong pouring milky night "
    "sunrise sunset cityscape cards flag map".split()
)


class Traits:
    """Of M pictures: where each is drawn, its colour, and what may be done with it.

    ``box`` [M,4]: left, top, right, bottom in [0,1]; ``typical`` [M,3]: hue in degrees, saturation
    and value of the dominant hue; ``boxes`` and ``mean`` (red, green, blue in [0,1]): plain lists;
    ``colour``: its own colour's name where that is clear and fit to be named; ``coloured`` and
    ``paintable``: indices of pictures that have such a name, and that can be recoloured.
    """

    def __init__(self, rgba: Tensor, records: Sequence[Mapping]):
        parts = [_measured(part) for part in rgba.split(512)]
        self.box = compose.boxes(rgba)
        self.boxes = self.box.tolist()
        self.typical = torch.cat([part.typical for part in parts])
        self.hue = self.typical[:, 0].tolist()
        self.mean = torch.cat([part.mean for part in parts]).tolist()
        self.phrase = [noun(str(record["name"])) for record in records]
        self.style = [captions.style(record) for record in records]
        self.mirror = [mirrorable(record) for record in records]
        fit = [is_object(record) for record in records]
        names = torch.cat([part.name for part in parts]).tolist()
        self.colour = [
            colours.NAMES[k] if ok and k >= 0 and colours.NAMES[k] != "beige" else None
            for k, ok in zip(names, fit, strict=True)
        ]
        one_hue = torch.cat([part.recolourable for part in parts]).tolist()
        self.coloured = [i for i, colour in enumerate(self.colour) if colour]
        self.paintable = [i for i, ok in enumerate(fit) if ok and one_hue[i]]
        self.family: dict[object, list[int]] = {}
        for i, record in enumerate(records):
            self.family.setdefault(record.get("family"), []).append(i)


def is_object(record: Mapping) -> bool:
    """Whether a colour word suits the picture: no face, person, flag or sign."""
    return _category(record) in _COLOURABLE and not _words(record) & _OWN_COLOUR


def mirrorable(record: Mapping) -> bool:
    """Whether its mirror image is as right: no letters, signs, flags, clocks or directions."""
    return _category(record) not in ("flags", "symbols") and not _words(record) & _SIDED


def _category(record: Mapping) -> str:
    return (re.findall(r"[a-z]+", str(record.get("category", "")).lower()) or [""])[0]


def _words(record: Mapping) -> set[str]:
    return set(re.findall(r"[a-z]+", str(record["name"]).lower()))


def _measured(part: Tensor) -> colours.Colouring:
    """Colours are measured on at most 32 pixels a side: enough, and quick."""
    step = max(1, part.shape[-1] // 32)
    return colours.measure(part[:, :, ::step, ::step].float() / 255)


class Emphasis:
    """How often each drawing is chosen: the weights of its category, subcategory and style, multiplied.

    emphasis: weights by "animals and nature", "travel and places: time", "flat", ...; unnamed = 1. Raises
    ``ValueError`` for a name that no drawing has, and where no drawing is left.
    """

    def __init__(self, records: Sequence[Mapping], emphasis: Mapping[str, float]):
        marks = [_marks(record) for record in records]
        known = {mark for each in marks for mark in each}
        if unknown := sorted(set(emphasis) - known):
            raise ValueError(
                f"no drawing is of {', '.join(unknown)}, which scenes.emphasis names; there are "
                f"{', '.join(sorted(known))}"
            )
        self._weights = [prod(emphasis.get(mark, 1.0) for mark in each) for each in marks]
        if not any(self._weights):
            raise ValueError("scenes.emphasis leaves no drawing: every weight is 0")
        self._even = not emphasis
        self._sums: dict[int, tuple[Sequence[int], list[float]]] = {}

    def choose(self, rng: Random, choices: Sequence[int]) -> int:
        """One of these drawings; what is chosen from again and again is summed up once."""
        if self._even:
            return rng.choice(choices)
        if id(choices) not in self._sums:  # the choices are held too: no other list can take their id
            self._sums[id(choices)] = choices, list(accumulate(self._weights[i] for i in choices))
        sums = self._sums[id(choices)][1]
        return rng.choices(choices, cum_weights=sums)[0] if sums[-1] else rng.choice(choices)


def _marks(record: Mapping) -> list[str]:
    """What an emphasis may call a drawing by."""
    category, part, style = (str(record.get(key) or "") for key in ("category", "subcategory", "style"))
    return [mark for mark in (category, part and f"{category}: {part}", style) if mark]
