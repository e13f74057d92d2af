"""Scenes composed on the fly from icons with an alpha channel, each with an English caption.

All pictures stay in memory as uint8; a batch is a few batched matrix products. Besides plain
pictures there are recoloured ones, pairs, coloured backgrounds, sizes and places, so that words
combine. ``Scenes.batch(seed, n)`` and ``Scenes.each(seeds)`` are pure functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unclip.config import Chance, Config, Factor
from unclip.data.batches import Batch
from unclip.data.reading import expand, read_shards

from . import captions, colours, compose
from .captions import Phrase
from .compose import Layer, Scene
from .everyday import meanings
from .traits import Emphasis, Traits

# word, then the least and the largest length of the drawing's longer side
SIZES = (
    ("tiny", 0.20, 0.28), ("small", 0.30, 0.42), ("little", 0.30, 0.42),
    ("big", 0.98, 1.05), ("large", 0.98, 1.05), ("huge", 1.04, 1.14),
)  # fmt: skip
# words, then how far right and how far down
PLACES = (
    ("in the top left corner", 0, 0), ("in the top right corner", 1, 0),
    ("in the bottom left corner", 0, 1), ("in the bottom right corner", 1, 1),
    ("on the left", 0, 0.5), ("on the right", 1, 0.5),
    ("at the top", 0.5, 0), ("at the bottom", 0.5, 1), ("in the middle", 0.5, 0.5),
)  # fmt: skip
Weights = dict[str, Factor]


class ScenesConfig(Config):
    """How often each kind of scene is drawn (weights need not add up to one)."""

    plain: Factor = 0.62
    recoloured: Factor = 0.08
    pair: Factor = 0.08
    background: Factor = 0.12
    placed: Factor = 0.10
    everyday: Factor = 0.0  # plain, but called by a word of everyday life: "a goldfish"
    augment: bool = True  # shift, scale and mirror; False leaves plain pictures as they are
    still: Chance = 0.4  # share of plain ones moved by whole pixels, which stay crisp
    emphasis: Weights = {}  # by category, "category: subcategory" or style, multiplied; unnamed = 1
    detail: Chance = 0.15  # chance that a pair or a background comes with a colour word


PLAIN_ONLY = ScenesConfig(recoloured=0, pair=0, background=0, placed=0, augment=False)


class Scenes:
    """Icons in memory, and the scenes made of them.

    ``rgba``: uint8 [M,4,S,S], premultiplied alpha; ``records``: the JSON of each picture, with its
    ``key`` added; ``size``: S.
    """

    def __init__(self, rgba: Tensor, records: Sequence[Mapping], config: ScenesConfig | None = None):
        if rgba.dtype != torch.uint8 or rgba.dim() != 4 or rgba.shape[1] != 4 or len(rgba) == 0:
            raise ValueError(f"expected uint8 [M,4,S,S] with M > 0, got {rgba.dtype} {rgba.shape}")
        if len(rgba) != len(records):
            raise ValueError(f"{len(rgba)} pictures but {len(records)} records")
        self.rgba, self.config = rgba, config or ScenesConfig()
        self.records = [dict(record) for record in records]
        self.size = rgba.shape[-1]
        self.traits = Traits(rgba, self.records)
        self._paintable = frozenset(self.traits.paintable)
        self._meanings = meanings(self.records, self.traits)
        self._emphasis, self._all = Emphasis(self.records, self.config.emphasis), range(len(self))

    @classmethod
    def load(
        cls,
        shards: str | Path | Sequence[str | Path],
        size: int | None = None,
        config: ScenesConfig | None = None,
        only: Sequence[str] = (),
    ) -> Scenes:
        """Read tar shards (paths, globs or a folder) of RGBA pictures with JSON records.

        ``size``: side in pixels; None keeps that of the pictures. A sample without a record takes
        its caption as its name. ``only``: names to keep; () keeps all. Raises ``ValueError``
        (``ShardError``) when there is no picture, no picture of one of these names, or when
        pictures differ in size and ``size`` is None.
        """
        paths = [shards] if isinstance(shards, (str, Path)) else list(shards)
        with tqdm(desc="reading pictures", unit=" pictures", leave=False) as bar:

            def read(url: str) -> list[tuple[np.ndarray, dict]]:
                loaded = []
                for sample in read_shards([url], epochs=1):
                    record = {**(sample.get("record") or {}), "key": sample["key"]}
                    record.setdefault("name", sample["caption"])
                    if only and record["name"] not in only:
                        continue
                    loaded.append((compose.premultiplied(sample["image"], size), record))
                    bar.update()
                return loaded

            with ThreadPoolExecutor(2) as threads:
                samples = [sample for part in threads.map(read, expand(paths)) for sample in part]
        if not samples:
            raise ValueError(f"no pictures in {', '.join(map(str, paths))}")
        if missing := set(only) - {record["name"] for _, record in samples}:
            raise ValueError(f"no picture is called {', '.join(sorted(missing))}")
        pictures = torch.from_numpy(np.stack([picture for picture, _ in samples]))
        return cls(pictures, [record for _, record in samples], config)

    def __len__(self) -> int:
        return len(self.rgba)

    def pictures(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The pictures as they are, on white: [n,3,S,S] in [-1,1]."""
        rgba = self.rgba[torch.as_tensor(indices)].float() / 255
        return (rgba[:, :3] + 1 - rgba[:, 3:]) * 2 - 1

    def batch(self, seed: int, n: int, crop: int | None = None) -> Batch:
        """``n`` random scenes, the same for the same arguments.

        ``crop``: side in pixels of a random window of each scene; None gives whole scenes. Only the
        window is drawn. Raises ``ValueError`` for a window larger than a scene.
        """
        rng = Random(int(seed))
        return self._drawn([make(rng) for make in self._makers(rng, n)], [rng] * n, crop)

    def each(self, seeds: Sequence[int], crop: int | None = None) -> Batch:
        """A random scene for each seed, which is the same whatever the others are; ``crop`` as above."""
        rngs = [Random(int(seed)) for seed in seeds]
        return self._drawn([self._makers(rng, 1)[0](rng) for rng in rngs], rngs, crop)

    def _makers(self, rng: Random, n: int) -> list[Callable[[Random], Scene]]:
        kinds = {
            self._plain: self.config.plain,
            self._recoloured: self.config.recoloured,
            self._pair: self.config.pair,
            self._on_background: self.config.background,
            self._placed: self.config.placed,
            self._everyday: self.config.everyday,
        }
        return rng.choices(list(kinds), list(kinds.values()), k=n)

    def _drawn(self, scenes: list[Scene], rngs: list[Random], crop: int | None) -> Batch:
        side = crop or self.size
        if not 0 < side <= self.size:
            raise ValueError(f"a crop of {side} does not fit into {self.size} pixels")
        room = self.size - side
        corners = [(rng.randint(0, room), rng.randint(0, room)) for rng in rngs]
        keys = ["+".join(self.records[part.index]["key"] for part in s.layers) for s in scenes]
        image = compose.draw(scenes, self.rgba, self.traits.box, self.traits.typical, corners, side)
        return Batch(image, [scene.caption for scene in scenes], keys)

    def _chosen(self, rng: Random, choices: Sequence[int] | None = None) -> int:
        """One of these drawings, or of all."""
        return self._emphasis.choose(rng, self._all if choices is None else choices)

    def _plain(self, rng: Random) -> Scene:
        index = self._chosen(rng)
        return Scene((self._nudged(index, rng),), captions.caption(self.records[index], rng))

    def _recoloured(self, rng: Random) -> Scene:
        """A colour word that agrees with what is seen: painted, or the picture's own."""
        painted = rng.random() < 0.6
        choices = self.traits.paintable if painted else self.traits.coloured
        if not choices:
            return self._plain(rng)
        index = self._chosen(rng, choices)
        colour = self._other_colour(index, rng) if painted else None
        phrase = self._phrase(index, colour or self.traits.colour[index])
        layer = replace(self._nudged(index, rng), colour=colour)
        return Scene((layer,), captions.dress(phrase, rng, self.traits.style[index]))

    def _pair(self, rng: Random) -> Scene:
        left = self._chosen(rng)
        family = self.traits.family[self.records[left].get("family")]
        same = rng.random() < 0.85
        right = self._chosen(rng, family if same else None)
        if self._phrase(left) == self._phrase(right):
            return self._plain(rng)
        longest = rng.uniform(0.40, 0.48)
        level = rng.uniform(0.42, 0.58)
        layers, phrases = [], []
        for index, middle in ((left, 0.25), (right, 0.75)):
            centre = (middle + rng.uniform(-0.01, 0.01), level + rng.uniform(-0.04, 0.04))
            layer = self._fitted(index, longest * rng.uniform(0.92, 1.04), centre, rng)
            layer, phrase = self._detailed(layer, rng)
            layers.append(layer)
            phrases.append(phrase)
        style = self.traits.style[left] if same else ""
        return Scene(tuple(layers), captions.dress(captions.beside(*phrases, rng), rng, style))

    def _on_background(self, rng: Random) -> Scene:
        index = self._chosen(rng)
        name, rgb = self._contrasting(index, rng)
        longest = rng.uniform(0.65, 0.92)
        free = min(0.04, 0.49 - longest / 2)
        centre = (0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free))
        layer = self._fitted(index, longest, centre, rng)
        layer, phrase = self._detailed(layer, rng, avoid=name)
        phrase = captions.on_background(phrase, name, rng)
        rgb = tuple(min(1.0, max(0.0, channel + rng.uniform(-0.03, 0.03))) for channel in rgb)
        return Scene((layer,), captions.dress(phrase, rng, self.traits.style[index]), rgb)

    def _placed(self, rng: Random) -> Scene:
        """A size word, a place, or both."""
        index = self._chosen(rng)
        size, place = rng.choices(((True, False), (False, True), (True, True)), (45, 45, 10))[0]
        size = size and self.traits.phrase[index].kind != "proper"
        word, low, high = rng.choice([s for s in SIZES if s[2] < 0.5] if place else SIZES)
        longest = rng.uniform(low, high) if size else rng.uniform(0.34, 0.52)
        phrase = self._phrase(index, word if size else None)
        if place or not size:
            where, *sides = rng.choice(PLACES)
            phrase = captions.placed(phrase, where, rng)
            edge = longest / 2 + rng.uniform(0.02, 0.06)
            centre = tuple(edge + (1 - 2 * edge) * side for side in sides)
        else:
            free = max(0.0, 0.5 - longest / 2) * 0.5
            centre = (0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free))
        layer = self._fitted(index, longest, centre, rng)
        return Scene((layer,), captions.dress(phrase, rng, self.traits.style[index]))

    def _everyday(self, rng: Random) -> Scene:
        if not self._meanings:
            return self._plain(rng)
        meaning = rng.choice(self._meanings)
        index, colour = rng.choice(meaning.pictures)
        layer = replace(self._nudged(index, rng), colour=colour)
        phrase = captions.phrase(meaning.noun)
        return Scene((layer,), captions.dress(phrase, rng, self.traits.style[index]))

    def _nudged(self, index: int, rng: Random) -> Layer:
        """Almost where and as large as it was drawn, and never cut off."""
        left, top, right, bottom = self.traits.boxes[index]
        scale, centre = 1.0, []
        augment = self.config.augment
        still = rng.random() < self.config.still
        if augment and not still:
            scale = min(rng.uniform(0.85, 1.05), 1 / max(right - left, bottom - top))
        for start, end in ((left, right), (top, bottom)):
            shift = rng.uniform(-0.05, 0.05) if augment else 0.0
            if still:  # by whole pixels, so that the picture stays crisp
                shift = round(shift * self.size) / self.size
            reach = (end - start) * scale / 2
            wanted = 0.5 + ((start + end) / 2 - 0.5) * scale + shift
            centre.append(min(max(wanted, reach), 1 - reach))
        return Layer(index, tuple(centre), scale, self._flip(index, rng))

    def _fitted(self, index: int, longest: float, centre: tuple[float, float], rng: Random) -> Layer:
        """Scaled such that the longer side of its box is ``longest``."""
        left, top, right, bottom = self.traits.boxes[index]
        scale = longest / max(right - left, bottom - top)
        return Layer(index, centre, scale, self._flip(index, rng))

    def _flip(self, index: int, rng: Random) -> bool:
        return self.config.augment and self.traits.mirror[index] and rng.random() < 0.3

    def _detailed(self, layer: Layer, rng: Random, avoid: str = "") -> tuple[Layer, Phrase]:
        """The layer and its phrase, sometimes with a colour: its own, or one that it is painted."""
        index, colour = layer.index, None
        if rng.random() < self.config.detail:
            own = self.traits.colour[index]
            if own and rng.random() < 0.5:
                return layer, self._phrase(index, own)
            if index in self._paintable:
                colour = self._other_colour(index, rng)
        if colour == avoid:
            colour = None
        return replace(layer, colour=colour), self._phrase(index, colour)

    def _contrasting(self, index: int, rng: Random) -> tuple[str, tuple[float, ...]]:
        """A background's name and its colour, such that the picture does not drown in it."""
        mean = self.traits.mean[index]
        names = []
        for name, rgb in colours.BACKGROUNDS.items():
            distance = sum((a / 255 - b) ** 2 for a, b in zip(rgb, mean, strict=True)) ** 0.5
            if distance > 0.35 and name != self.traits.colour[index]:
                names.append(name)
        name = rng.choice(names)
        return name, tuple(channel / 255 for channel in colours.BACKGROUNDS[name])

    def _phrase(self, index: int, adjective: str | None = None) -> Phrase:
        return captions.phrase(self.traits.phrase[index], adjective)

    def _other_colour(self, index: int, rng: Random) -> str:
        """A colour to paint a picture in that it does not have already."""
        hue, own = self.traits.hue[index], self.traits.colour[index]
        return rng.choice(
            [
                name
                for name, (other, saturation, _) in colours.OBJECTS.items()
                if name != own and (saturation < 0.2 or abs((hue - other + 180) % 360 - 180) > 18)
            ]
        )
