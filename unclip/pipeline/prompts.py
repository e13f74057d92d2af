"""Sentences as the stages of one model take them: in CLIP's words, in the decoder's own tokens, or both."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import Clip, Text

if TYPE_CHECKING:
    from ..stages.tokenizer import GlideTokenizer

T = TypeVar("T")


def needed(part: T | None, what: str) -> T:
    """A part of a model, itself; ``ValueError`` where there is none."""
    if part is None:
        raise ValueError(f"this model comes without {what}, which that needs")
    return part


@dataclass(frozen=True)
class Prompts:
    """N sentences, encoded."""

    texts: list[str]  # themselves
    clip: Text | None = None  # what CLIP makes of them; None = the model has none
    ids: Tensor | None = None  # int64 [N,L], of the tokenizer of a stage with its own text transformer
    mask: Tensor | None = None  # bool [N,L], False = padding

    def repeat(self, n: int) -> Prompts:
        """Each sentence ``n`` times in a row."""

        def rows(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat_interleave(n, dim=0)

        clip = None if self.clip is None else self.clip.repeat(n)
        return Prompts([text for text in self.texts for _ in range(n)], clip, rows(self.ids), rows(self.mask))

    def padded_like(self, other: Prompts) -> Prompts:
        """With as many of CLIP's tokens as ``other`` has, at least as many; the new ones are masked."""
        if self.clip is None or other.clip is None:
            return self
        more = other.clip.tokens.shape[1] - self.clip.tokens.shape[1]
        return replace(
            self,
            clip=replace(
                self.clip,
                tokens=F.pad(self.clip.tokens, (0, 0, 0, more)),
                mask=F.pad(self.clip.mask, (0, more)),
            ),
        )

    def __getitem__(self, index: slice) -> Prompts:
        return Prompts(
            self.texts[index],
            None if self.clip is None else self.clip[index],
            None if self.ids is None else self.ids[index],
            None if self.mask is None else self.mask[index],
        )

    def __len__(self) -> int:
        return len(self.texts)


def cuts(text: str, clip: Clip | None, tokenizer: GlideTokenizer | None) -> list[str]:
    """What does not fit into the contexts of a model, a sentence each to be said of the text."""
    readers: list[tuple[Clip | GlideTokenizer, int]]
    readers = [] if clip is None else [(clip, clip.context_length)]
    readers += [] if tokenizer is None else [(tokenizer, tokenizer.length)]
    ends = [(length, reader.truncated(text)) for reader, length in readers]
    return [f"is longer than {length} tokens; this was cut off: '{end}'" for length, end in ends if end]


def encode(
    texts: Sequence[str], clip: Clip | None, tokenizer: GlideTokenizer | None, device: torch.device
) -> Prompts:
    """Texts for a model that has one of both, or both; warns of what does not fit into a context."""
    for cut in dict.fromkeys(cut for text in dict.fromkeys(texts) for cut in cuts(text, clip, tokenizer)):
        warnings.warn(f"the prompt {cut}", stacklevel=4)
    words = None if clip is None else clip.encode_text(texts).trimmed()
    if tokenizer is None:
        return Prompts(list(texts), words)
    ids, mask = tokenizer.tokenize(texts)
    return Prompts(list(texts), words, ids.to(device), mask.to(device))
