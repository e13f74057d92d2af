"""What sampling starts from besides noise: a picture that is drawn over, or a part of it that is kept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
