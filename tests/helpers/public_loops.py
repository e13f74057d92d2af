"""A second implementation of public sampling: improved DDPM's spaced process, as GLIDE runs it.

It counts as the public code does: an index i of the spaced process, betas rebuilt from the products of
the levels kept, and a table from i to the original step, which is what networks and guides are fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Spaced:
    """betas: [T] of the original process. visited: the original steps (0 is one step of noise) to visit."""

    def __init__(self, betas: np.ndarray, visited: Sequence[int]) -> None:
        self.steps = sorted(visited)
        kept_bars = np.cumprod(1 - betas)[self.steps]
        before = np.concatenate([[1.0], kept_bars[:-1]])
        self.betas = 1 - kept_bars / before
        self.bars = np.cumprod(1 - self.betas)
        self.bars_before = np.concatenate([[1.0], self.bars[:-1]])
        self.posterior = self.betas * (1 - self.bars_before) / (1 - self.bars)
        self.log_posterior = np.log(np.concatenate([self.posterior[1:2], self.posterior[1:]]))

    def x0(self, x: Tensor, eps: Tensor, i: int, then: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The predicted picture: first what `then` does to it, then the clamp."""
        x0 = float(self.bars[i] ** -0.5) * x - float((1 / self.bars[i] - 1) ** 0.5) * eps
        return (x0 if then is None else then(x0)).clamp(-1, 1)

    def mean(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        of_x0 = self.betas[i] * self.bars_before[i] ** 0.5 / (1 - self.bars[i])
        of_x = (1 - self.bars_before[i]) * (1 - self.betas[i]) ** 0.5 / (1 - self.bars[i])
        return float(of_x0) * x0 + float(of_x) * x

    def ancestral(
        self, model: Callable, x: Tensor, noise: Callable[[], Tensor], then=None, guide=None
    ) -> Tensor:
        """p_sample_loop with learned range; model(x, t) -> [N,6,S,S], guide(x, t) -> a gradient."""
        for i in reversed(range(len(self.steps))):
            t = torch.full((len(x),), self.steps[i])
            eps, values = model(x, t).chunk(2, dim=1)
            share = (values + 1) / 2
            log_variance = share * float(np.log(self.betas[i])) + (1 - share) * float(self.log_posterior[i])
            mean = self.mean(x, self.x0(x, eps, i, then), i)
            if guide is not None:
                mean = mean + log_variance.exp() * guide(x, t)
            x = mean + (0.5 * log_variance).exp() * noise() if i > 0 else mean
        return x

    def ddim(self, model: Callable, x: Tensor) -> Tensor:
        """ddim_sample_loop with eta 0; a learned variance is not used."""
        for i in reversed(range(len(self.steps))):
            eps = model(x, torch.full((len(x),), self.steps[i])).chunk(2, dim=1)[0]
            x0 = self.x0(x, eps, i, None)
            eps = (float(self.bars[i] ** -0.5) * x - x0) / float((1 / self.bars[i] - 1) ** 0.5)
            x = float(self.bars_before[i] ** 0.5) * x0 + float((1 - self.bars_before[i]) ** 0.5) * eps
        return x


def cosine(timesteps: int = 1000) -> np.ndarray:
    """The betas of squaredcos_cap_v2."""
    at = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - at[1:] / at[:-1], 0.999)


def guided(model: Callable, cond: dict, null: dict, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """GLIDE's notebook: both halves at once, eps moved away from the empty text, the text's own variance."""
    both = {key: torch.cat([cond[key], null[key]]) for key in cond}

    def called(x: Tensor, t: Tensor) -> Tensor:
        out = model(torch.cat([x, x]), torch.cat([t, t]), **both)
        (eps, values), n = out.chunk(2, dim=1), len(x)
        return torch.cat([eps[n:] + scale * (eps[:n] - eps[n:]), values[:n]], dim=1)

    return called
