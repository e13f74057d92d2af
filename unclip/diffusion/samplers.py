"""Samplers: generators that walk x down a step list and yield where they are.

Each takes (denoise, schedule, x, steps, noise):
    denoise   (x, t) -> Prediction, with conditioning and guidance already in it
    x         [N, ...] at level steps[0]; pure noise if that is T
    steps     descending levels such as `step_list("ddim50", 1000)`
    noise     fresh noise; only a sampler that draws any needs it
A step list that does not descend within T..0, or missing noise, is a ValueError. `invert` walks
the other way.

What moves x is dx = x0 d(alpha) + eps d(sigma), the probability-flow ODE (Song et al. 2021,
Score-Based Generative Modeling, eq. 13) written so that it is finite at alpha = 0 and sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoise, Prediction
from .gaussian import diffuse, log_variance, optimal_variance, posterior, posterior_variance
from .guidance import GradFn, gradient_of
from .noise import Noise
from .schedule import Schedule, check_steps, like


@dataclass(frozen=True)
class Step:
    """Where a sampler is after a step."""

    t: int  # the level that x is at now; 0 after the last step down
    x: Tensor  # [N, ...]
    x0: Tensor  # [N, ...] the picture that the step went towards


def _each(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, device=x.device)


def _predict(denoise: Denoise, x: Tensor, t: int) -> Prediction:
    return denoise(x, _each(t, x))


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
    x0_variance: Mapping[int, float] | None = None,
    shift: GradFn | None = None,
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with the prediction's variance.

    x0_variance: by t, as from `analytic.x0_variance`; its optimal variance replaces the
        prediction's (Bao et al. 2022, Analytic-DPM).
    shift: variance * shift(x, t, x0) is added to the mean (Dhariwal & Nichol 2021, algorithm 1),
        where `guidance.gradient` changes the score. The two agree for small steps.
    """
    check_steps(steps, schedule)
    before = schedule.at(steps[0])
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        out = _predict(denoise, x, t)
        mean, _ = posterior(x, out.x0, level_t, level_s)
        if x0_variance is None:
            # Small variance is 0 where s is data; any other is then, publicly, that of the step before.
            small = not isinstance(out.frac, Tensor) and out.frac == 0
            log_var = log_variance(out.frac, level_t, level_s, None if small else before)
        else:
            log_var = optimal_variance(_at(x0_variance, t), level_t, level_s).log()
        std = like((0.5 * log_var).exp(), x)
        if shift is not None:
            mean = mean + std**2 * gradient_of(shift, x, _each(t, x), out.x0)
        x = mean + std * _draw(noise, x) if s > 0 else mean
        before = level_t
        yield Step(s, x, out.x0)


def _at(x0_variance: Mapping[int, float], t: int) -> float:
    if t not in x0_variance:
        raise ValueError(f"the table of x0_variance has no entry for t = {t}")
    return x0_variance[t]


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
        of_eps = (level_s.sigma**2 - fresh).sqrt()
        x = like(level_s.alpha, x) * out.x0 + like(of_eps, x) * out.eps
        if s > 0 and eta > 0:
            x = x + like(fresh.sqrt(), x) * _draw(noise, x)
        yield Step(s, x, out.x0)


@torch.no_grad()
def invert(denoise: Denoise, schedule: Schedule, x: Tensor, steps: Sequence[int]) -> Iterator[Step]:
    """DDIM backwards, from a picture to its noise (Song et al. 2021, section 4.3).

    x: [N, ...] at level steps[0], a picture if that is 0. A network knows no level 0, where the
        noise is taken to be what it is at level 1, the next.
    steps: ascending levels, such as `step_list(50, 1000)[::-1]`; ValueError if they are not.
        `ddim` over the same levels gives back x, to an error of the order of 1 / steps.
    """
    if any(s >= t for s, t in pairwise(steps)):
        raise ValueError(f"an inversion's step list must ascend, got {list(steps)}")
    check_steps(steps[::-1], schedule)
    for s, t in pairwise(steps):
        out = _predict(denoise, x, max(s, 1))
        x0 = out.x0 if s > 0 else x
        x = diffuse(x0, out.eps, schedule.at(t))
        yield Step(t, x, x0)


@torch.no_grad()
def heun(
    denoise: Denoise, schedule: Schedule, x: Tensor, steps: Sequence[int], noise: Noise | None = None
) -> Iterator[Step]:
    """Heun's second order on dx = x0 d(alpha) + eps d(sigma), deterministic.

    Karras et al. 2022, algorithm 1, whose step it is where alpha is 1. Each step asks the network
    twice, at both of its ends, but the last one, to data, only once (Euler, which is DDIM).
    """
    check_steps(steps, schedule)
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        out = _predict(denoise, x, t)
        x0, end = out.x0, diffuse(out.x0, out.eps, level_s)
        if s > 0:
            there = _predict(denoise, end, s)
            x0, eps = (out.x0 + there.x0) / 2, (out.eps + there.eps) / 2
            moved = like(level_s.alpha - level_t.alpha, x) * x0
            end = x + moved + like(level_s.sigma - level_t.sigma, x) * eps
        x = end
        yield Step(s, x, x0)


@torch.no_grad()
def dpm_solver_2m(
    denoise: Denoise, schedule: Schedule, x: Tensor, steps: Sequence[int], noise: Noise | None = None
) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), second order, deterministic.

    The paper's exp(-h) is written as (alpha_t sigma_s) / (alpha_s sigma_t), which is finite at
    every level. The first step, and the one to data, where lambda is infinite, are of order one;
    so is the second of a list that begins at alpha = 0, where lambda is infinite too.
    """
    check_steps(steps, schedule)
    last: tuple[Tensor, Tensor] | None = None  # x0 and h of the step before
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        h = (level_s.log_snr - level_t.log_snr) / 2  # lambda_s - lambda_t
        out = _predict(denoise, x, t)
        d = out.x0
        if last is not None and s > 0:
            last_x0, last_h = last
            d = d + like(h / (2 * last_h), x) * (out.x0 - last_x0)
        ratio = level_s.sigma / level_t.sigma
        x = like(ratio, x) * x + like(level_s.alpha - level_t.alpha * ratio, x) * d
        last = out.x0, h
        yield Step(s, x, out.x0)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm++2m": dpm_solver_2m,
    "heun": heun,
}
