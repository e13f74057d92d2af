"""Wishes of several requests or rows as one, where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..pipeline.request import Wish


def agree(a: Wish, b: Wish) -> bool:
    """Whether two wishes can be drawn in one run: the same options, and nothing that all rows share."""

    def kind(wish: Wish) -> tuple[bool, ...]:
        return tuple(value is None for value in (wish.texts, wish.embed, wish.start, wish.classes))

    return not alone(a) and not alone(b) and kind(a) == kind(b) and a.options == b.options


def alone(wish: Wish) -> bool:
    """Whether a wish has what all its pictures share, and those of others do not."""
    return any(value is not None for value in (wish.canvas, wish.sketch, wish.blend, wish.enlarge))


def joined(wishes: Sequence[Wish]) -> Wish:
    """Wishes that agree as one, row after row."""

    def rows(values: Sequence[Tensor | None]) -> Tensor | None:
        some = [value for value in values if value is not None]
        return torch.cat(some) if some else None

    texts = [text for wish in wishes for text in wish.texts or ()]
    return replace(
        wishes[0],
        seeds=[seed for wish in wishes for seed in wish.seeds],
        texts=texts if wishes[0].texts is not None else None,
        embed=rows([wish.embed for wish in wishes]),
        start=rows([wish.start for wish in wishes]),
        classes=rows([wish.classes for wish in wishes]),
        makings=[making for wish in wishes for making in wish.makings],
    )
