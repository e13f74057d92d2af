"""Noise levels: a schedule is a frozen float64 table of (alpha, sigma), a step list is integers.

A picture at level t is x_t = alpha_t x_0 + sigma_t eps. `t` counts as in Ho et al. 2020:
0 is data, T is noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def like(coefficient: Tensor | float, x: Tensor) -> Tensor:
    """A coefficient, [], [N] or [N, ...], ready to be multiplied with x [N, ...].

    It is cast to x's precision (float32 at least). One number stays on the CPU, where any
    device can use it without a copy.
    """
    c = torch.as_tensor(coefficient, dtype=torch.promote_types(x.dtype, torch.float32))
    if c.dim() == 1:
        c = c.view(-1, *[1] * (x.dim() - 1))
    return c if c.dim() == 0 else c.to(x.device)


@dataclass(frozen=True)
class Level:
    """How much is left of the picture (alpha) and how much noise there is (sigma): [] or [N]."""

    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        for name in ("alpha", "sigma"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                object.__setattr__(self, name, torch.tensor(value, dtype=torch.float64))

    @property
    def alpha_bar(self) -> Tensor:
        """alpha^2, the product of (1 - beta) in Ho et al. 2020, eq. 4."""
        return self.alpha**2

    @property
    def log_snr(self) -> Tensor:
        """log(alpha^2 / sigma^2): falls with t, infinite at t = 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def like(self, x: Tensor) -> Level:
        """The same level broadcast to x [N, ...] at x's precision (float32 at least)."""
        return Level(like(self.alpha, x), like(self.sigma, x))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The levels of a diffusion process with T steps; made by `make_schedule`."""

    name: str
    timesteps: int  # T
    alpha: Tensor  # [T + 1] float64 on the CPU, 1 at t = 0
    sigma: Tensor  # [T + 1] float64 on the CPU, 0 at t = 0
    _copies: dict = field(default_factory=dict, repr=False)

    def at(self, t: int | Tensor) -> Level:
        """The level of one t, or of each t in an int64 tensor [N], all in 0..T."""
        if isinstance(t, Tensor):
            if t.device.type == "cpu" and ((t < 0) | (t > self.timesteps)).any():
                raise ValueError(f"t must be in 0..{self.timesteps}, got {t.tolist()}")
            alpha, sigma = self._on(t.device)
            t = t.to(alpha.device)
            return Level(alpha[t], sigma[t])
        if not 0 <= t <= self.timesteps:
            raise ValueError(f"t must be in 0..{self.timesteps}, got {t}")
        return Level(self.alpha[t], self.sigma[t])

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The table on a device, copied once so that a look-up never waits for the device."""
        if device.type in ("cpu", "mps"):  # MPS has no float64
            return self.alpha, self.sigma
        if device not in self._copies:
            self._copies[device] = self.alpha.to(device), self.sigma.to(device)
        return self._copies[device]


def linear_betas(timesteps: int) -> np.ndarray:
    """Ho et al. 2020, section 4: 1e-4 to 0.02 at T = 1000, scaled to keep the end at any T."""
    scale = 1000 / timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=np.float64)


def cosine_betas(timesteps: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, with s = 0.008."""

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array(
        [1 - alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps) for i in range(timesteps)]
    )


def variance_preserving(betas: np.ndarray) -> tuple[Tensor, Tensor]:
    """betas [T] -> alpha, sigma [T + 1] with alpha^2 + sigma^2 = 1; each beta is at most 0.999."""
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.minimum(betas, 0.999), axis=0))
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


SCHEDULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "cosine": lambda timesteps: variance_preserving(cosine_betas(timesteps)),
    "linear": lambda timesteps: variance_preserving(linear_betas(timesteps)),
}


def make_schedule(name: str, timesteps: int = 1000) -> Schedule:
    """The schedule of that name with T = timesteps >= 1; ValueError for any other."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    if timesteps < 1:
        raise ValueError(f"a schedule needs at least 1 timestep, got {timesteps}")
    return Schedule(name, timesteps, *SCHEDULES[name](timesteps))


def evenly_spaced(timesteps: int, steps: int) -> list[int]:
    """`steps` even steps from T down to 0, as steps + 1 levels; ValueError unless 1 <= steps <= T.

    Above one step these are the public code's lists for the respacing "N" (Nichol & Dhariwal
    2021, section 4), so that the last step is from t = 1; a single step goes from T to 0.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be between 1 and {timesteps}, got {steps}")
    if steps == 1:
        return [timesteps, 0]
    stride, position, levels = (timesteps - 1) / (steps - 1), 0.0, [0]
    for _ in range(steps):
        levels.append(round(position) + 1)
        position += stride  # summed, not multiplied: ties must round as they do publicly
    return levels[::-1]


def check_steps(steps: Sequence[int], schedule: Schedule) -> None:
    """ValueError unless steps are at least two levels that descend within T..0."""
    if len(steps) < 2:
        raise ValueError(f"a step list needs at least two levels, got {list(steps)}")
    if any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"a step list must descend, got {list(steps)}")
    if steps[0] > schedule.timesteps or steps[-1] < 0:
        raise ValueError(f"steps must be in {schedule.timesteps}..0, got {list(steps)}")
