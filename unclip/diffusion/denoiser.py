"""What a network's output means: every network becomes (x, t) -> Prediction(x0, eps, frac)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .schedule import Level, Schedule


@dataclass(frozen=True)
class Prediction:
    """What is in x = alpha x0 + sigma eps, and the variance of a step down from it."""

    x0: Tensor  # [N, ...] the picture
    eps: Tensor  # [N, ...] the noise
    frac: Tensor | float = 0.0  # log variance from the posterior's (0) to beta's (1)

    def v(self, level: Level) -> Tensor:
        """The velocity alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).

        In `flow` too, where rectified flow's own velocity is eps - x0 (Liu et al. 2022).
        """
        level = level.like(self.x0)
        return level.alpha * self.eps - level.sigma * self.x0

    @classmethod
    def from_eps(cls, x: Tensor, eps: Tensor, level: Level, frac: Tensor | float = 0.0) -> Self:
        """x [N, ...] and its noise; x0 cannot be told where alpha is 0."""
        level = level.like(x)
        return cls((x - level.sigma * eps) / level.alpha, eps, frac)

    @classmethod
    def from_x0(cls, x: Tensor, x0: Tensor, level: Level, frac: Tensor | float = 0.0) -> Self:
        """x [N, ...] and its picture; eps cannot be told where sigma is 0."""
        level = level.like(x)
        return cls(x0, (x - level.alpha * x0) / level.sigma, frac)

    @classmethod
    def from_v(cls, x: Tensor, v: Tensor, level: Level, frac: Tensor | float = 0.0) -> Self:
        """x [N, ...] and its velocity; works at every level."""
        level = level.like(x)
        total = level.alpha**2 + level.sigma**2  # 1 where variance is preserved
        x0 = (level.alpha * x - level.sigma * v) / total
        return cls(x0, (level.sigma * x + level.alpha * v) / total, frac)


Denoise = Callable[[Tensor, Tensor], Prediction]
"""(x [N, ...], t int64 [N]) -> Prediction: all that guidance and samplers know of a model."""

PREDICTS = {"eps": Prediction.from_eps, "x0": Prediction.from_x0, "v": Prediction.from_v}
FIXED_FRAC = {"small": 0.0, "large": 1.0}


def check_prediction(predicts: str, variance: str, schedule: Schedule) -> None:
    """ValueError for an unknown prediction or variance, and for eps where alpha reaches 0."""
    variances = (*FIXED_FRAC, "learned")
    if predicts not in PREDICTS:
        raise ValueError(f"unknown prediction {predicts!r}; known: {', '.join(PREDICTS)}")
    if variance not in variances:
        raise ValueError(f"unknown variance {variance!r}; known: {', '.join(variances)}")
    if predicts == "eps" and (schedule.alpha == 0).any():
        raise ValueError(
            f"eps cannot be predicted with the {schedule.name} schedule: where alpha is 0, "
            "eps does not tell x0; predict x0 or v"
        )


@dataclass(frozen=True)
class Denoiser:
    """A network together with the meaning of its output.

    It is called as network(x, (t - 1) * time_scale as float [N], **cond), which is how OpenAI's
    networks count; the scale is 1000 / T in improved DDPM, and 1 elsewhere. ValueError as
    `check_prediction` says: `flow` goes with x0 and v alone.
    """

    network: Callable[..., Tensor]
    schedule: Schedule
    predicts: str = "eps"  # "eps", "x0" or "v"
    variance: str = "small"  # "small", "large", or "learned": the second half of the channels
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_prediction(self.predicts, self.variance, self.schedule)

    def __call__(self, x: Tensor, t: Tensor, **cond: object) -> Prediction:
        """x [N, C, ...] at levels t int64 [N] in 1..T; computes in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = self.network(x, (t - 1).float() * self.time_scale, **cond).to(dtype)
        frac: Tensor | float | None = FIXED_FRAC.get(self.variance)
        channels = x.shape[1] * (2 if frac is None else 1)
        if out.shape != (x.shape[0], channels, *x.shape[2:]):
            raise ValueError(
                f"the network made {tuple(out.shape)} from {tuple(x.shape)}; "
                f"{self.variance} variance needs {channels} channels"
            )
        if frac is None:
            out, values = out.chunk(2, dim=1)
            frac = (values + 1) / 2  # Nichol & Dhariwal 2021, eq. 15
        return PREDICTS[self.predicts](x.to(dtype), out, self.schedule.at(t), frac)
