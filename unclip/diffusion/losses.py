"""Training losses: named terms, each a vector [N]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .gaussian import diffuse, discretized_log_likelihood, kl, log_variance, posterior
from .schedule import Level, like

KINDS = ("simple", "hybrid", "vlb", "rescaled", "auxiliary")


def mean_flat(x: Tensor) -> Tensor:
    """The mean of each picture: [N, ...] -> [N]."""
    return x.flatten(1).mean(1)


def vlb_terms(
    prediction: Prediction, x0: Tensor, x: Tensor, level_t: Level, level_s: Level, level_before: Level
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
    terms = mean_flat(kl(true_mean, true_log_var, mean, log_var))
    at_data = (like(level_s.sigma, x) == 0).flatten().expand(len(x))
    if x.device.type != "cpu":  # to count those rows is to wait for the device
        nll = mean_flat(-discretized_log_likelihood(x0, mean, 0.5 * log_var))
        terms = torch.where(at_data, nll, terms)
    elif at_data.any():  # of N random steps few end at data, and this is the dearest part
        few = (whole[at_data] for whole in torch.broadcast_tensors(x0, mean, 0.5 * log_var))
        terms = terms.masked_scatter(at_data, mean_flat(-discretized_log_likelihood(*few)))
    return terms / math.log(2)


def min_snr(level: Level, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma), the weight of x0's squared error (Hang et al. 2023, section 3.4)."""
    return level.snr.clamp(max=gamma)


def min_snr_plus_one(level: Level, gamma: float = 5.0) -> Tensor:
    """min(SNR + 1, gamma): v's weight (Salimans & Ho 2022, section 4), capped as in `min_snr`.

    Unlike that of `min_snr` it does not vanish at the noisiest levels, where few-step samplers begin.
    """
    return (level.snr + 1).clamp(max=gamma)


def p2(level: Level, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """SNR / (k + SNR)^gamma, the weight of x0's squared error (Choi et al. 2022, section 3.2).

    The paper's weight 1 / (k + SNR)^gamma is that of eps's, which is SNR times x0's.
    """
    return level.snr / (k + level.snr) ** gamma


WEIGHTINGS: dict[str, Callable[[Level], Tensor]] = {
    "min_snr": min_snr,
    "min_snr_plus_one": min_snr_plus_one,
    "p2": p2,
}


def over_x0_error(level: Level, predicts: str) -> Tensor:
    """The squared error of what is predicted, as a multiple of that of its x0.

    SNR for eps, and for v 1 + SNR where variance is preserved (Salimans & Ho 2022, section 4).
    """
    total = level.alpha**2 + level.sigma**2
    return {"eps": level.snr, "x0": torch.ones_like(level.snr), "v": (total / level.sigma) ** 2}[predicts]


def check_loss(kind: str, weighting: str, variance: str) -> None:
    """ValueError for an unknown loss or weighting, or for parts that do not go together."""
    if kind not in KINDS:
        raise ValueError(f"unknown loss {kind!r}; known: {', '.join(KINDS)}")
    if weighting not in ("none", *WEIGHTINGS):
        known = ", ".join(("none", *WEIGHTINGS))
        raise ValueError(f"unknown weighting {weighting!r}; known: {known}")
    if kind == "hybrid" and variance != "learned":
        raise ValueError(f"the hybrid loss needs learned variance, not {variance!r}")
    if weighting != "none" and kind not in ("simple", "hybrid"):
        raise ValueError(
            f"the weighting {weighting!r} is of the squared error, of which the {kind} loss has "
            "none: the variational bound sets its own weights"
        )


def loss_terms(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: dict | None = None,
    kind: str = "simple",
    weighting: str = "none",
    auxiliary_weight: float = 0.001,
) -> dict[str, Tensor]:
    """What to minimise as "loss", and the terms that it is the sum of, each [N].

    kind: which terms.
        "simple"     mse
        "hybrid"     mse + vlb of the variance alone, times T / 1000: the mean's half gets no
                     gradient (Nichol & Dhariwal 2021, eq. 16, with the public weight)
        "vlb"        the bound's term at t, in bits per dimension
        "rescaled"   the same times T: its mean over uniform t is the whole bound, but for the
                     prior's term
        "auxiliary"  vlb + auxiliary (Austin et al. 2021, eq. 5)
    "mse": the error of what the network predicts (Ho et al. 2020, eq. 14), weighted.
    "auxiliary": auxiliary_weight times -log2 p(x0 | x_t) a dimension, where D3PM's p over
        categories becomes N(x0; predicted x0, I): half the squared error of x0 over log 2, but
        for a constant. The default is the paper's for CIFAR-10.
    weighting: of the mse, stated for x0 and converted to what is predicted: "none", "min_snr",
        "min_snr_plus_one" (both with gamma = 5) or "p2" (gamma = k = 1).

    x0, noise: [N, C, ...], data (in [-1, 1] where the bound is used) and N(0, 1).
    t: int64 [N] in 1..T, as from `timesteps.uniform`.
    ValueError as `check_loss` says.
    """
    check_loss(kind, weighting, denoiser.variance)
    schedule, last = denoiser.schedule, denoiser.schedule.timesteps
    level = schedule.at(t)
    x = diffuse(x0, noise, level)
    out = denoiser(x, t, **(cond or {}))
    terms = {}
    if kind in ("simple", "hybrid"):
        terms["mse"] = mean_flat(_error(out, Prediction(x0, noise), level, denoiser.predicts) ** 2)
    if weighting != "none":
        weight = WEIGHTINGS[weighting](level) / over_x0_error(level, denoiser.predicts)
        terms["mse"] = weight.to(terms["mse"]) * terms["mse"]
    if kind != "simple":
        frozen = replace(out, x0=out.x0.detach(), eps=out.eps.detach())
        judged = frozen if kind == "hybrid" else out
        below, before = schedule.at(t - 1), schedule.at((t + 1).clamp(max=last))
        scale = {"hybrid": last / 1000, "rescaled": last}.get(kind, 1)
        terms["vlb"] = scale * vlb_terms(judged, x0, x, level, below, before)
    if kind == "auxiliary":
        terms["auxiliary"] = auxiliary_weight / (2 * math.log(2)) * mean_flat((out.x0 - x0) ** 2)
    return {"loss": sum(terms.values(), start=x.new_zeros(())), **terms}


def _error(out: Prediction, true: Prediction, level: Level, predicts: str) -> Tensor:
    if predicts == "v":
        return out.v(level) - true.v(level)
    return getattr(out, predicts) - getattr(true, predicts)
