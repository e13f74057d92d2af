"""Which noise levels a training batch sees."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(n: int, timesteps: int, generator: torch.Generator | None = None) -> Tensor:
    """t [n] int64, each of 1..timesteps equally likely (Ho et al. 2020, algorithm 1)."""
    device = None if generator is None else generator.device
    return torch.randint(1, timesteps + 1, (n,), generator=generator, device=device)
