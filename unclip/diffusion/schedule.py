"""Noise levels: a schedule is a frozen float64 table of (alpha, sigma), a step list is integers.

A picture at level t is x_t = alpha_t x_0 + sigma_t eps. `t` counts as in Ho et al. 2020:
0 is data, T is noise.
"""

from __future__ import annotations

import math
import operator
import re
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
        """log(alpha^2 / sigma^2): falls with t, infinite at t = 0 (and, in `flow`, -inf at T)."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, the signal-to-noise ratio (Kingma et al. 2021, eq. 2)."""
        return (self.alpha / self.sigma) ** 2

    @property
    def noise_share(self) -> Tensor:
        """sigma / (alpha + sigma): 0 is data, 1 noise alone, and 1/2 as much of one as of the other.

        It means the same in every schedule; in `flow` it is t / T, and a noise level sigma of Karras et al.
        2022, where alpha is 1, is sigma / (1 + sigma).
        """
        return self.sigma / (self.alpha + self.sigma)

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


def latent_betas(timesteps: int) -> np.ndarray:
    """Kandinsky's, of latents: 0.00085 to 0.012 at T = 1000, scaled as ``linear_betas`` are."""
    scale = 1000 / timesteps
    return np.linspace(scale * 0.00085, scale * 0.012, timesteps, dtype=np.float64)


def cosine_betas(timesteps: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, with s = 0.008."""

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([1 - alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps) for i in range(timesteps)])


def variance_preserving(betas: np.ndarray) -> tuple[Tensor, Tensor]:
    """betas [T] -> alpha, sigma [T + 1] with alpha^2 + sigma^2 = 1; each beta is at most 0.999."""
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.minimum(betas, 0.999), axis=0))
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def flow(timesteps: int) -> tuple[Tensor, Tensor]:
    """alpha = 1 - t / T, sigma = t / T [T + 1]: a straight line (Liu et al. 2022, eq. 1).

    Its variance is not preserved, and at T alpha is 0: nothing is left of the picture there.
    """
    sigma = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    return 1 - sigma, sigma


SCHEDULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "cosine": lambda timesteps: variance_preserving(cosine_betas(timesteps)),
    "linear": lambda timesteps: variance_preserving(linear_betas(timesteps)),
    "linear-latent": lambda timesteps: variance_preserving(latent_betas(timesteps)),
    "flow": flow,
}


def shifted(alpha: Tensor, sigma: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Levels [T + 1] whose alpha / sigma is `shift` times what it was; alpha^2 + sigma^2 stays 1, or,
    where it was alpha + sigma that is 1 (`flow`), that does.

    log SNR moves by 2 log(shift). A picture of S pixels a side is ruined as much as one of s is when
    shift = s / S (Hoogeboom et al. 2023, arXiv:2301.11093, on adjusting noise schedules; for flow it is
    the resolution-dependent shift of Esser et al. 2024, arXiv:2403.03206).
    """
    straight = torch.allclose(alpha + sigma, torch.ones_like(alpha))
    alpha = shift * alpha
    norm = alpha + sigma if straight else torch.hypot(alpha, sigma)
    return alpha / norm, sigma / norm


def make_schedule(name: str, timesteps: int = 1000, shift: float = 1.0) -> Schedule:
    """The schedule of that name with T = timesteps >= 1, `shifted` by a number above 0; else ValueError."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    if timesteps < 1:
        raise ValueError(f"a schedule needs at least 1 timestep, got {timesteps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"a schedule's shift must be a finite number above 0, got {shift}")
    with torch.device("cpu"):  # also where a network is being built on the meta device
        levels = SCHEDULES[name](timesteps)
        return Schedule(name, timesteps, *(levels if shift == 1 else shifted(*levels, shift)))


def step_list(spec: int | str, timesteps: int) -> list[int]:
    """The descending levels that a sampler visits, the last of them 0.

    spec: one of
        50               steps in all, even: `evenly_spaced`
        "10,10,3,2,2"    even steps within equal sections, counted from the data: `sections`
        "ddim50"         steps of one integer stride: `strided`
        "fast27"         GLIDE's list for its upsampler: `fast27`
        "leading50+1"    steps of T // 50 that begin at 1 + 1, as diffusers' DDPM has them: `leading`
    ValueError for anything else, and for what T = timesteps cannot be split into. The lists are
    those of the public code (Nichol & Dhariwal 2021, section 4; Song et al. 2021), counted from 1,
    with 0 at the end; some begin a little below T.
    """
    spec = parse_steps(spec)
    if isinstance(spec, int):
        return evenly_spaced(timesteps, spec)
    if spec == "fast27":
        return fast27(timesteps)
    if spec.startswith("leading"):
        steps, _, offset = spec.removeprefix("leading").partition("+")
        return leading(timesteps, int(steps), int(offset or 0))
    if spec.startswith("ddim"):
        return strided(timesteps, int(spec.removeprefix("ddim")))
    return sections(timesteps, [int(count) for count in spec.split(",")])


def parse_steps(spec: int | str) -> int | str:
    """A spec of `step_list`, a number of steps as an int; ValueError if it cannot be one at any T."""
    if isinstance(spec, str):
        spec = re.sub(r"\s", "", spec)
        if re.fullmatch(r"[1-9][0-9]*", spec):
            return int(spec)
        if re.fullmatch(
            r"fast27|ddim[1-9][0-9]*|leading[1-9][0-9]*(\+[0-9]+)?|[1-9][0-9]*(,[1-9][0-9]*)+", spec
        ):
            return spec
    elif hasattr(spec, "__index__") and not isinstance(spec, bool) and spec > 0:
        return operator.index(spec)
    raise ValueError(
        "steps must be a positive number, sections such as '10,10,3,2,2', 'ddimN', 'leadingN+K' or "
        f"'fast27', got {spec!r}"
    )


def evenly_spaced(timesteps: int, steps: int) -> list[int]:
    """`steps` even steps from T down to 0, as steps + 1 levels; ValueError unless 1 <= steps <= T.

    Above one step these are the public code's lists for the respacing "N" (Nichol & Dhariwal
    2021, section 4), so that the last step is from t = 1; a single step goes from T to 0.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be between 1 and {timesteps}, got {steps}")
    if steps == 1:
        return [timesteps, 0]
    return sections(timesteps, [steps])


def sections(timesteps: int, counts: Sequence[int]) -> list[int]:
    """T levels in equal sections, data first, each with its count of even steps; the public list.

    Sections differ by a level at most, and the first are the longer ones. A section visits its
    first and its last level; with a count of 1 only its first, so that a list whose last count
    is 1 begins far below T. ValueError if a section has fewer levels than its count, or none.
    """
    size, longer = divmod(timesteps, len(counts))
    start, levels = 1, [0]
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if not 1 <= count <= length:
            raise ValueError(
                f"section {i + 1} of {','.join(map(str, counts))} has {length} of the {timesteps} "
                f"levels, which cannot make {count} steps"
            )
        stride, position = (length - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            levels.append(start + round(position))
            position += stride  # summed, not multiplied: ties must round as they do publicly
        start += length
    return levels[::-1]


def strided(timesteps: int, steps: int) -> list[int]:
    """`steps` levels 1, 1 + stride, ... for the least integer stride that makes so many, and 0.

    The public code's "ddimN" (Song et al. 2021, appendix D.2, linear). ValueError, with the
    nearest numbers that have a stride, for one that has none.
    """
    lists = [range(1, timesteps + 1, stride) for stride in range(1, max(timesteps, 2))]
    for levels in lists:
        if len(levels) == steps:
            return [*levels[::-1], 0]
    counts = {len(levels) for levels in lists}
    fewer, more = [n for n in counts if n < steps], [n for n in counts if n > steps]
    said = " and ".join(f"ddim{n}" for n in (*sorted(fewer)[-1:], *sorted(more)[:1]))
    raise ValueError(f"no integer stride makes {steps} steps of {timesteps}; near are {said}")


def leading(timesteps: int, steps: int, offset: int = 0) -> list[int]:
    """`steps` levels 1 + offset, then further by T // steps each, and 0: what diffusers calls leading.

    The first lies below T, by up to T // steps + T % steps levels. ValueError for more than T levels.
    """
    if not 1 <= steps <= timesteps or 1 + offset + (steps - 1) * (timesteps // steps) > timesteps:
        raise ValueError(f"{timesteps} levels have no {steps} leading steps that begin at 1 + {offset}")
    return [*(1 + offset + k * (timesteps // steps) for k in reversed(range(steps))), 0]


def fast27(timesteps: int) -> list[int]:
    """GLIDE's list for its upsampler: "10,10,3,2,2", but beginning at T - 2 (Nichol et al. 2021)."""
    return [timesteps - 2, *sections(timesteps, (10, 10, 3, 2, 2))[1:]]


def check_steps(steps: Sequence[int], schedule: Schedule) -> None:
    """ValueError unless steps are at least two levels that descend within T..0."""
    if len(steps) < 2:
        raise ValueError(f"a step list needs at least two levels, got {list(steps)}")
    if any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"a step list must descend, got {list(steps)}")
    if steps[0] > schedule.timesteps or steps[-1] < 0:
        raise ValueError(f"steps must be in {schedule.timesteps}..0, got {list(steps)}")
