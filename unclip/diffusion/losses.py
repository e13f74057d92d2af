"""Training losses: named terms, each a vector [N]."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .gaussian import diffuse, discretized_log_likelihood, kl, log_variance, posterior
from .schedule import Level, like

KINDS = ("simple", "hybrid")


def mean_flat(x: Tensor) -> Tensor:
    """The mean of each picture: [N, ...] -> [N]."""
    return x.flatten(1).mean(1)


def vlb_terms(
    prediction: Prediction,
    x0: Tensor,
    x: Tensor,
    level_t: Level,
    level_s: Level,
    level_before: Level,
) -> Tensor:
    """The term of the variational bound for the step from t to s, [N], in bits per dimension.

    The KL between q(x_s | x_t, x0) and p(x_s | x_t), or, where s is data, the negative
    log-likelihood of 8-bit data (Ho et al. 2020, eqs. 5 and 13).

    x0, x: [N, ...], the data and the data at level t.
    level_before: the noisier neighbour of t in the same step list; see `log_variance`.
    """
    true_mean, _ = posterior(x, x0, level_t, level_s)
    mean, _ = posterior(x, prediction.x0, level_t, level_s)
    true_log_var = like(log_variance(0.0, level_t, level_s, level_before), x)
    log_var = like(log_variance(prediction.frac, level_t, level_s, level_before), x)
    divergence = kl(true_mean, true_log_var, mean, log_var)
    nll = -discretized_log_likelihood(x0, mean, 0.5 * log_var)
    at_data = like(level_s.sigma, x) == 0
    return mean_flat(torch.where(at_data, nll, divergence)) / math.log(2)


def loss_terms(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: dict | None = None,
    kind: str = "simple",
) -> dict[str, Tensor]:
    """What to minimise as "loss", and the terms that it is the sum of, each [N].

    "mse": the error of what the network predicts (Ho et al. 2020, eq. 14).
    "vlb": only when hybrid, T / 1000 of the bound's term (Nichol & Dhariwal 2021, eq. 16, with
        the public weight). It trains the variance alone: the mean's half gets no gradient.

    x0, noise: [N, C, ...], data (in [-1, 1] when hybrid) and N(0, 1).
    t: int64 [N] in 1..T, as from `timesteps.uniform`.
    kind: "simple" or "hybrid"; ValueError for any other, or for hybrid without learned variance.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown loss {kind!r}; known: {', '.join(KINDS)}")
    if kind == "hybrid" and denoiser.variance != "learned":
        raise ValueError(f"the hybrid loss needs learned variance, not {denoiser.variance!r}")
    schedule, last = denoiser.schedule, denoiser.schedule.timesteps
    level = schedule.at(t)
    x = diffuse(x0, noise, level)
    out = denoiser(x, t, **(cond or {}))
    true = Prediction(x0, noise)
    if denoiser.predicts == "v":
        error = out.v(level) - true.v(level)
    else:
        error = getattr(out, denoiser.predicts) - getattr(true, denoiser.predicts)
    terms = {"mse": mean_flat(error**2)}
    if kind == "hybrid":
        frozen = replace(out, x0=out.x0.detach(), eps=out.eps.detach())
        below, before = schedule.at(t - 1), schedule.at((t + 1).clamp(max=last))
        terms["vlb"] = last / 1000 * vlb_terms(frozen, x0, x, level, below, before)
    return {"loss": sum(terms.values()), **terms}
