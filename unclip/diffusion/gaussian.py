"""Identities between Gaussians at two noise levels, for any s < t, in float64 coefficients.

With a = alpha_t / alpha_s, the step from s to t is x_t = a x_s + sqrt(beta) eps. Written with
beta = sigma_t^2 - a^2 sigma_s^2 (Kingma et al. 2021, appendix A), nothing here needs adjacent
levels, nor that variance is preserved.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import Level, like


def diffuse(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """x_t = alpha x0 + sigma noise, all [N, ...] (Ho et al. 2020, eq. 4)."""
    level = level.like(x0)
    return level.alpha * x0 + level.sigma * noise


def beta(level_t: Level, level_s: Level) -> Tensor:
    """The variance that the step from s to t adds; beta_t of Ho et al. 2020 when s = t - 1."""
    a = (level_t.alpha / level_s.alpha).nan_to_num(1.0)  # 0 / 0 is no step, from T to T
    return level_t.sigma**2 - a**2 * level_s.sigma**2


def posterior_variance(level_t: Level, level_s: Level) -> Tensor:
    """The variance of q(x_s | x_t, x0) (Ho et al. 2020, eq. 7); 0 where s is data."""
    return beta(level_t, level_s) * (level_s.sigma / level_t.sigma) ** 2


def posterior(x: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> tuple[Tensor, Tensor]:
    """Mean [N, ...] and variance ([] or [N, 1, ...]) of q(x_s | x_t = x, x0).

    Ho et al. 2020, eqs. 6 and 7.
    """
    of_x = level_t.alpha / level_s.alpha * (level_s.sigma / level_t.sigma) ** 2
    of_x0 = level_s.alpha * beta(level_t, level_s) / level_t.sigma**2
    variance = posterior_variance(level_t, level_s)
    return like(of_x, x) * x + like(of_x0, x) * x0, like(variance, x)


def optimal_variance(x0_variance: Tensor | float, level_t: Level, level_s: Level) -> Tensor:
    """The best variance of p(x_s | x_t), if x0 varies by x0_variance about its prediction.

    Bao et al. 2022 (Analytic-DPM), theorem 1, as a law of total variance. x0_variance: the mean
    over data and coordinates of the variance of p(x0 | x_t), as from `analytic.x0_variance`.
    """
    of_x0 = level_s.alpha * beta(level_t, level_s) / level_t.sigma**2
    return posterior_variance(level_t, level_s) + of_x0**2 * x0_variance


def log_variance(
    frac: Tensor | float, level_t: Level, level_s: Level, level_before: Level | None = None
) -> Tensor:
    """log variance of p(x_s | x_t) between the posterior's (frac 0) and beta (frac 1).

    Nichol & Dhariwal 2021, eq. 15. The posterior's variance is 0 where s is data; as in the
    public code, that of the step before, from `level_before` to t, then takes its place (and
    also that of beta if frac is a number, that is, if the variance is fixed).

    frac: [N, ...] or a number. Returns float64 [] or [N] for a number, else frac's shape.
    """
    small, large = posterior_variance(level_t, level_s), beta(level_t, level_s)
    if level_before is not None:
        at_data = level_s.sigma == 0
        small = torch.where(at_data, posterior_variance(level_before, level_t), small)
        if not isinstance(frac, Tensor):
            large = torch.where(at_data, small, large)
    # A chain of one step has no step before, and would have a log variance of minus infinity.
    log_small, log_large = small.clamp(min=1e-20).log(), large.clamp(min=1e-20).log()
    if isinstance(frac, Tensor):
        log_small, log_large = like(log_small, frac), like(log_large, frac)
    return frac * log_large + (1 - frac) * log_small


def kl(mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
    """KL(p || q) between Gaussians with diagonal covariance, elementwise, in nats."""
    wider = log_var_p - log_var_q
    return 0.5 * (wider.expm1() - wider + (mean_p - mean_q) ** 2 * (-log_var_q).exp())


def tanh_normal_cdf(x: Tensor) -> Tensor:
    """The standard normal distribution function to 3e-4, as in the public code (Page 1977)."""
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def discretized_log_likelihood(
    x: Tensor, mean: Tensor, log_std: Tensor, cdf: Callable[[Tensor], Tensor] = tanh_normal_cdf
) -> Tensor:
    """log probability, elementwise in nats, of 8-bit data under a Gaussian.

    Ho et al. 2020, eq. 13.

    x: multiples of 1/127.5 in [-1, 1]; the outermost bins reach to infinity.
    cdf: `torch.special.ndtr` is exact where the default agrees with published numbers.
    """
    upper = cdf((x - mean + 1 / 255) * (-log_std).exp())
    lower = cdf((x - mean - 1 / 255) * (-log_std).exp())
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()
