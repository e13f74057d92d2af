"""The variational bound on the likelihood of 8-bit data, in bits per dimension.

-log2 p(x0) <= L_T + L_(T-1) + ... + L_1 + L_0 (Ho et al. 2020, eq. 5): the prior's term, one
divergence for each step between noise levels, and the cost of the data at the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoise
from .gaussian import diffuse, kl
from .losses import mean_flat, vlb_terms
from .schedule import Level, Schedule, check_steps, like


def prior_term(x0: Tensor, level: Level) -> Tensor:
    """L_T = KL(q(x_T | x0) || N(0, 1)) for x0 [N, ...]: [N], in bits per dimension."""
    zero = torch.zeros_like(x0)
    log_variance = like(2 * level.sigma.log(), x0)
    return mean_flat(kl(like(level.alpha, x0) * x0, log_variance, zero, zero)) / math.log(2)


@torch.no_grad()
def bits_per_dim(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    steps: Sequence[int],
    noise: Callable[[Sequence[int]], Tensor],
) -> dict[str, Tensor]:
    """The bound and its terms, each estimated with one draw of x_t (Nichol & Dhariwal 2021).

    denoise:  with conditioning, without guidance; clamped to the data's range it codes better.
    x0:       [N, ...], multiples of 1/127.5 in [-1, 1].
    steps:    the chain, descending to 0; `range(T, -1, -1)` is the process itself.
    noise:    fresh noise for every step, as `Noise` makes it.

    Returns "total" [N] = "prior" [N] + the sum of "terms" [N, len(steps) - 1], of which column k
    belongs to the step from steps[k] to steps[k + 1]: the last is L_0. ValueError for a step list
    that does not descend to 0.
    """
    check_steps(steps, schedule)
    if steps[-1] != 0:
        raise ValueError(f"the bound's last step is to 0, the data; these end at {steps[-1]}")
    steps_bits = []
    for before, (t, s) in zip([steps[0], *steps[:-2]], pairwise(steps), strict=True):
        levels = schedule.at(t), schedule.at(s), schedule.at(before)
        x = diffuse(x0, noise(x0.shape[1:]).to(x0), levels[0])
        out = denoise(x, torch.full((len(x),), t, device=x.device))
        steps_bits.append(vlb_terms(out, x0, x, *levels))
    prior, terms = prior_term(x0, schedule.at(steps[0])), torch.stack(steps_bits, dim=1)
    return {"total": prior + terms.sum(1), "prior": prior, "terms": terms}
