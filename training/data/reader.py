"""One sample of a shard, by its number in the run, as it is learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unclip.data.batches import Batch, Embedded, Looked, gathered, pixels, window
from unclip.data.pictures import open_picture, square
from unclip.data.samples import class_of, picture_of, texts_of

from ..streams import Purpose, seed_of
from .embeddings import Embeddings, name_of
from .framing import framing, turned

if TYPE_CHECKING:
    from .config import DataConfig


@dataclass(frozen=True)
class Example:
    """A picture uint8 [3,S,S] (without pixels where its latents stand in), one of its captions, its key, its
    class (-1 = none), and what was embedded of it.
    """

    image: Tensor
    caption: str
    key: str
    label: int
    embedded: Looked | None = None


class Reader:
    """Samples -> examples; what is left to chance depends on (seed, number) alone."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.embeddings = None if config.embeddings is None else Embeddings(config.embeddings)

    def __call__(self, sample: dict[str, Any], number: int) -> Example | tuple[str, str]:
        """The example of a sample, undecoded or as ``read_shards`` yields it; (key, reason) if it is corrupt.

        A JPEG is decoded at the smallest of 1/2, 1/4 and 1/8 that is as large as what is wanted, and then
        resized (see ``open_picture``); docs/benchmarks.md says what that gains, and how near it comes to the
        whole picture resized. ``ConfigError`` for a class that is none.
        """
        config, rng = self.config, Random(seed_of(self.seed, Purpose.AUGMENT, number))
        side, place = framing(config.random_crop, rng)
        try:
            if "image" in sample:
                image, captions, record = sample["image"], sample["captions"], sample["record"]
                key = sample["key"]
            else:
                key = sample["__key__"]
                picture = picture_of(sample)
                texts = texts_of(sample)
                captions, record = texts.captions, texts.record
                image = None if config.latents else open_picture(picture, least=config.size / side)
            if not config.latents:
                image = square(image, config.size, side, place, config.background)
            which = rng.randrange(len(captions)) if len(captions) > 1 else 0
            embedded = self._look_up(sample.get("shard") or sample["__url__"], key, which, captions[which])
        except ValueError as error:
            return key, str(error)
        label = class_of(record, key)
        if config.latents:
            return Example(torch.zeros(3, 0, 0, dtype=torch.uint8), captions[which], key, label, embedded)
        image = turned(window(pixels(image), config.crop, rng), config.flip, config.rotate, rng)
        return Example(image.contiguous(), captions[which], key, label, embedded)

    def _look_up(self, shard: str, key: str, which: int, caption: str) -> Looked | None:
        """What was embedded of a sample; ``ValueError`` if that is not of this sample as it is now."""
        if self.embeddings is None:
            return None
        rows = self.embeddings[name_of(shard)]
        row = rows.row.get(key)
        if row is None:
            raise ValueError(f"no embedding in {self.embeddings.folder}")
        texts = rows.captions_of(row)
        if which >= len(texts) or rows.captions[texts[which]] != caption:
            raise ValueError(f"its caption is another than that in {self.embeddings.folder}")
        states = rows.states(texts[which]) if self.embeddings.tokens else None
        latents = torch.from_numpy(rows.latents[row].copy()) if self.config.latents else None
        return Looked(rows.image[row], rows.text[texts[which]], states, latents)

    def embedded(self, samples: Sequence[dict]) -> Embedded:
        """What was embedded of samples, as ``read_shards`` yields them, with their first captions."""
        return gathered([self._look_up(one["shard"], one["key"], 0, one["caption"]) for one in samples])


def batch_of(examples: Sequence[Example], corrupt: Sequence[tuple[str, str]] = ()) -> Batch:
    """Examples as one batch, whose pictures are uint8 still; corrupt: as ``Batch`` has it."""
    embedded = [one.embedded for one in examples if one.embedded is not None]
    return Batch(
        torch.stack([one.image for one in examples]),
        [one.caption for one in examples],
        [one.key for one in examples],
        torch.tensor([one.label for one in examples]),
        gathered(embedded) if embedded else None,
        tuple(corrupt),
    )
