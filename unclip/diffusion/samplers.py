"""Samplers: generators that walk x down a step list and yield where they are.

Each takes (denoise, schedule, x, steps, noise):
    denoise   (x, t) -> Prediction, with conditioning and guidance already in it
    x         [N, ...] at level steps[0]; pure noise if that is T
    steps     descending levels such as `evenly_spaced(1000, 50)`
    noise     fresh noise; only a sampler that draws any needs it
A step list that does not descend within T..0, or missing noise, is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoise, Prediction
from .gaussian import log_variance, posterior, posterior_variance
from .noise import Noise
from .schedule import Schedule, check_steps, like


@dataclass(frozen=True)
class Step:
    """Where a sampler is after a step."""

    t: int  # the level that x is at now; 0 after the last step
    x: Tensor  # [N, ...]
    x0: Tensor  # [N, ...] the picture that the step went towards


def _predict(denoise: Denoise, x: Tensor, t: int) -> Prediction:
    return denoise(x, torch.full((len(x),), t, device=x.device))


def _draw(noise: Noise | None, x: Tensor) -> Tensor:
    if noise is None:
        raise ValueError("this sampler draws fresh noise at every step: pass it a Noise")
    return noise(x.shape[1:]).to(x)


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    steps: Sequence[int],
    noise: Noise | None = None,
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with the prediction's variance."""
    check_steps(steps, schedule)
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        out = _predict(denoise, x, t)
        x, _ = posterior(x, out.x0, level_t, level_s)
        if s > 0:
            std = (0.5 * log_variance(out.frac, level_t, level_s)).exp()
            x = x + like(std, x) * _draw(noise, x)
        yield Step(s, x, out.x0)


@torch.no_grad()
def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    steps: Sequence[int],
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eqs. 12 and 16); eta in 0..1 is the share of fresh noise.

    0 is deterministic; 1 has the marginals of ancestral sampling with small variance.
    """
    check_steps(steps, schedule)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        out = _predict(denoise, x, t)
        fresh = eta**2 * posterior_variance(level_t, level_s)
        kept = (level_s.sigma**2 - fresh).sqrt()
        x = like(level_s.alpha, x) * out.x0 + like(kept, x) * out.eps
        if s > 0 and eta > 0:
            x = x + like(fresh.sqrt(), x) * _draw(noise, x)
        yield Step(s, x, out.x0)


@torch.no_grad()
def dpm_solver_2m(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    steps: Sequence[int],
    noise: Noise | None = None,
) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), second order, deterministic.

    The paper's exp(-h) is written as (alpha_t sigma_s) / (alpha_s sigma_t), which is finite at
    every level. The first step, and the one to data, where lambda is infinite, are of order one.
    """
    check_steps(steps, schedule)
    last_x0, last_h = None, None
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        h = (level_s.log_snr - level_t.log_snr) / 2  # lambda_s - lambda_t
        out = _predict(denoise, x, t)
        d = out.x0
        if last_x0 is not None and s > 0:
            d = d + like(h / (2 * last_h), x) * (out.x0 - last_x0)
        ratio = level_s.sigma / level_t.sigma
        x = like(ratio, x) * x + like(level_s.alpha - level_t.alpha * ratio, x) * d
        last_x0, last_h = out.x0, h
        yield Step(s, x, out.x0)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm++2m": dpm_solver_2m,
}
