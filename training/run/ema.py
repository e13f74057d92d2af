"""An exponential moving average of a network's weights, with its half-life counted in pictures."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Averaged copy of ``module`` (in ``.module``, eval mode, without gradients).

    half_life: pictures after which an old weight counts half.
    ramp:      early in training the half-life is at most this share of the pictures seen, so that
               the average forgets its random start (Karras et al. 2022, appendix B.3).
    """

    def __init__(self, module: nn.Module, half_life: float, ramp: float = 0.05) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.half_life = half_life
        self.ramp = ramp

    def beta(self, batch: int, seen: int) -> float:
        """The decay for a step of ``batch`` pictures after ``seen`` pictures."""
        half_life = min(self.half_life, self.ramp * max(seen, 1))
        return 0.5 ** (batch / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, module: nn.Module, batch: int, seen: int) -> None:
        """Move the average towards ``module``; buffers are copied. Of weights that are shared out among
        processes (both alike) each averages its part.
        """
        beta = self.beta(batch, seen)
        averaged, current = ([_local(p) for p in net.parameters()] for net in (self.module, module))
        torch._foreach_lerp_(averaged, current, 1.0 - beta)
        for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)


def _local(weight: Tensor) -> Tensor:
    """This process's part of a weight (a ``DTensor``), or the weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
