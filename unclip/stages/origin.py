"""What sampling starts from besides noise: a picture that is drawn over, or a part of it that is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

ALIKE = 1.0  # of the range of 2: places that differ by so much have nothing in common


@dataclass(frozen=True)
class Origin:
    """A picture of a stage's size that is not drawn from nothing.

    picture:     [N,3,S,S] or [1,3,S,S] in [-1,1].
    strength:    above 0, at most 1: the level of noise, of T, at which drawing begins with the picture
                 (SDEdit, Meng et al. 2022, algorithm 1); 1 = with noise alone.
    known:       bool [1,1,S,S], what of it is kept by RePaint (see ``diffusion.repaint``); None = nothing.
    resamplings: RePaint's, of every step.
    """

    picture: Tensor
    strength: float = 1.0
    known: Tensor | None = None
    resamplings: int = 1


def with_detail(base: Tensor, picture: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """A picture [N,3,S,S] in [-1,1], drawn coarsely (``base``), with another's detail where both agree.

    picture, coarse: [N,3,S,S] or [1,3,S,S], the other one and what an enlargement by ``factor`` leaves of it.
    The further apart ``base`` and ``coarse`` are around a place, the less of the detail is put there: an edge
    that the new picture does not have would be drawn as a line.
    """
    apart = (base - coarse).abs().amax(1, keepdim=True)
    apart = F.max_pool2d(apart, 2 * factor + 1, stride=1, padding=factor)
    share = (1 - apart / ALIKE).clamp(min=0)
    return (base + share * (picture - coarse)).clamp(-1, 1)
