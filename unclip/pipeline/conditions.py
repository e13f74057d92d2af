"""What a picture stage is told of samples: the same in training, validation and measuring."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..clip import Clip
from ..data.batches import Batch, classes_of
from ..stages import Conditions, Decoder
from ..stages.tokenizer import GlideTokenizer
from .prompts import needed


@torch.no_grad()
def conditions_of(
    stage: Decoder,
    clip: Clip | None,
    batch: Batch,
    low_res: Tensor | None,
    tokenizer: GlideTokenizer | None = None,
    picture: Tensor | None = None,
) -> Conditions:
    """What a stage is told about a batch: its embeddings, captions, classes and the pictures themselves
    [N,3,S,S] (to inpaint), as far as it takes them.

    Raises ``ConfigError`` if the pictures have no class, or one that the stage does not know.
    """
    samples = BatchSamples(stage, clip, batch, low_res, tokenizer, picture)
    return stage.conditions_of(samples, len(batch.pixels))


@dataclass
class BatchSamples:
    """The values of a batch (see ``stages.condition.Samples``), each made when it is asked for.

    Pictures that ``batch.embedded`` holds are not embedded again; nor are texts, if there is no CLIP.
    """

    stage: Decoder
    clip: Clip | None
    batch: Batch
    low_res: Tensor | None
    tokenizer: GlideTokenizer | None
    image: Tensor | None  # to be inpainted, at the stage's size
    mask: None = None  # all of it is known, until training erases some

    @property
    def _device(self) -> torch.device:
        return self.stage.embed_mean.device

    @cached_property
    def pictures(self) -> Tensor:
        return self.batch.image.to(self._device)

    @property
    def image_embed(self) -> Tensor:
        embedded = self.batch.embedded
        if embedded is None:
            return needed(self.clip, "its CLIP").encode_image(self.pictures)
        return embedded.image.to(self._device)

    @cached_property
    def _words(self) -> tuple[Tensor | None, ...]:
        """Of the captions: states, their mask, and vectors."""
        embedded = self.batch.embedded
        if embedded is None or self.clip is not None:
            text = needed(self.clip, "its CLIP").encode_text(self.batch.caption).trimmed()
            return text.tokens, text.mask, text.embed
        words = (embedded.tokens, embedded.mask, embedded.text)
        return tuple(None if value is None else value.to(self._device) for value in words)

    @property
    def text(self) -> Tensor | None:
        return self._words[0]

    @property
    def text_mask(self) -> Tensor | None:
        return self._words[1]

    @property
    def text_embed(self) -> Tensor | None:
        return self._words[2]

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        ids, mask = needed(self.tokenizer, "its tokenizer").tokenize(self.batch.caption)
        return ids.to(self._device), mask.to(self._device)

    @property
    def tokens(self) -> Tensor:
        return self._ids[0]

    @property
    def token_mask(self) -> Tensor:
        return self._ids[1]

    @property
    def classes(self) -> Tensor:
        return classes_of(self.batch, self.stage.config.net.classes or 0).to(self._device)
