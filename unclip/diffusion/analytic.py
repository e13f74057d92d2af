"""The analytic variance of Analytic-DPM, estimated from a denoiser and data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .denoiser import Prediction
from .gaussian import diffuse
from .schedule import Schedule


@torch.no_grad()
def x0_variance(
    denoiser: Callable[..., Prediction],
    schedule: Schedule,
    batches: Iterable[tuple[Tensor, dict]],
    steps: Sequence[int],
    generator: torch.Generator,
) -> dict[int, float]:
    """By t, the mean over data and coordinates of the variance of p(x0 | x_t), for `ddpm`.

    It is estimated as the mean of (x0 - predicted x0)^2. For an exact denoiser that is what Bao et
    al. 2022, theorem 1, write as (sigma / alpha)^2 (1 - E||eps||^2 / d), whose Monte Carlo
    error is too large to use where alpha is small. For any other it is what the best variance
    needs, given that denoiser's mean (Bao et al. 2022, Optimal Covariance with Imperfect Mean).

    denoiser: (x, t, **cond) -> Prediction, not guided.
    batches: (x0 [N, ...], cond); the more, the better: some thousand pictures are plenty.
    steps: the levels of the step list that it is for; 0 is passed over.
    generator: draws t's noise, on its own device.
    """
    levels = [t for t in steps if t > 0]
    total, count = dict.fromkeys(levels, 0.0), 0
    for x0, cond in batches:
        for t in levels:
            noise = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
            x = diffuse(x0, noise, schedule.at(t))
            out = denoiser(x, torch.full((len(x),), t, device=x.device), **cond)
            total[t] += float((out.x0 - x0).double().square().sum())
        count += x0.numel()
    if count == 0:
        raise ValueError("there is no data to estimate the variance from")
    return {t: value / count for t, value in total.items()}
