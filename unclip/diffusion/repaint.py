"""RePaint: a hole in a picture is filled by a denoiser that was never told of holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .gaussian import beta, diffuse
from .noise import Noise
from .samplers import Step
from .schedule import Schedule, check_steps, like


@torch.no_grad()
def repaint(
    sample: Callable[[Tensor, Sequence[int]], Iterator[Step]],
    schedule: Schedule,
    x: Tensor,
    steps: Sequence[int],
    noise: Noise,
    x0: Tensor,
    known: Tensor,
    resamplings: int = 10,
) -> Iterator[Step]:
    """Lugmayr et al. 2022, algorithm 1: after every step down what is known takes its place at that level
    (eq. 8a), and the step is gone back and taken again, so that the rest comes to agree with it (sec. 4.2).

    sample: (x, steps) -> steps of any sampler; each is asked for alone, so that what is of several steps
        (dpm++2m) is of order one.
    x: [N, ...] at level steps[0]; x0: [N, ...] or [1, ...], of which ``known`` (bool, as broadcast) is kept.
    resamplings: how often each step is taken, but for the last; 1 only puts back what is known.
    """
    check_steps(steps, schedule)
    if resamplings < 1:
        raise ValueError(f"a step is taken at least once, not {resamplings} times")
    for t, s in pairwise(steps):
        level_t, level_s = schedule.at(t), schedule.at(s)
        for again in range(resamplings if s > 0 else 1):
            if again:
                ratio = level_t.alpha / level_s.alpha
                fresh = like(beta(level_t, level_s).sqrt(), x) * noise(x.shape[1:]).to(x)
                x = like(ratio, x) * x + fresh
            *_, step = sample(x, [t, s])
            there = diffuse(x0, noise(x.shape[1:]).to(x), level_s) if s > 0 else x0
            x = torch.where(known, there, step.x)
            yield Step(s, x, torch.where(known, x0, step.x0))
