"""Guidance: each part turns a denoise into another, so that every sampler can use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise, Prediction
from .schedule import Level, Schedule, like

GradFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, t, x0) -> the gradient of a log-probability with respect to x, in x's shape."""


def bind(denoiser: Callable[..., Prediction], **cond: object) -> Denoise:
    """The denoise that a denoiser is for one conditioning."""
    return partial(denoiser, **cond)


def classifier_free(
    denoiser: Callable[..., Prediction],
    cond: dict,
    null: dict,
    scale: float,
    rescale: float = 0.0,
    schedule: Schedule | None = None,
    interval: tuple[float, float] | None = None,
    apg: Projection | None = None,
) -> Denoise:
    """null + scale (cond - null), in one batch of both (Ho & Salimans 2022, eq. 6, scale = 1 + w).

    The map is the same in eps, x0 and v space. The variance is that of cond.

    cond, null: the same keys; tensors [N, ...] of the same shape, other values passed as in cond.
    scale: 1 is no guidance, and then only cond is run.
    rescale: 0 to 1, see `rescaled`; more than 0 needs the schedule.
    interval: see `within`; None = everywhere. Another needs the schedule.
    apg: see `projected`; None = off. Another needs the schedule, and one sampling at a time.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"the rescaling of guidance must be between 0 and 1, got {rescale}")
    if schedule is None and (rescale or interval is not None or apg is not None):
        raise ValueError(
            "guidance is rescaled, projected or kept to an interval only with the schedule: pass it too"
        )
    if scale == 1:
        return bind(denoiser, **cond)
    if cond.keys() != null.keys():
        raise ValueError(f"cond has {sorted(cond)}, but null has {sorted(null)}")
    both = {
        name: torch.cat([value, null[name]]) if isinstance(value, Tensor) else value
        for name, value in cond.items()
    }
    project = None if apg is None else projected(apg)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        out = denoiser(torch.cat([x, x]), torch.cat([t, t]), **both)
        (x0, null_x0), (eps, null_eps) = out.x0.chunk(2), out.eps.chunk(2)
        frac = out.frac.chunk(2)[0] if isinstance(out.frac, Tensor) else out.frac
        guided = Prediction(null_x0 + scale * (x0 - null_x0), null_eps + scale * (eps - null_eps), frac)
        if project is not None and schedule is not None:
            update, level = x0 - null_x0, schedule.at(t).like(x)
            more = (scale - 1) * (project(update, x0, t) - update)  # to the bit 0 where nothing is changed
            guided = Prediction(guided.x0 + more, guided.eps - level.alpha / level.sigma * more, frac)
        if rescale and schedule is not None:
            return rescaled(guided, Prediction(x0, eps), x, schedule.at(t), rescale)
        return guided

    if interval is None or schedule is None:
        return denoise
    return within(denoise, bind(denoiser, **cond), schedule, interval)


def within(guided: Denoise, plain: Denoise, schedule: Schedule, interval: tuple[float, float]) -> Denoise:
    """guided where low < noise share <= high, plain elsewhere (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    Guidance takes pictures their variety at high noise, and changes nothing at low noise. Outside of the
    interval guided is not called, which saves the half of a step.

    interval: low and high, as `parse_interval` takes them: shares of noise (`Level.noise_share`), that is
        sigma / (1 + sigma) of the paper's noise levels, whose (0.28, 2.9] is (0.22, 0.74].
    """
    low, high = parse_interval(interval)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        share = schedule.at(t).noise_share
        inside = (low < share) & (share <= high)
        if inside.all() or not inside.any():
            return (guided if inside.any() else plain)(x, t)
        a, b = guided(x, t), plain(x, t)  # of rows at several levels, as no sampler asks
        rows = _rows(inside, x)
        frac = a.frac if not isinstance(a.frac, Tensor) else torch.where(rows, a.frac, b.frac)
        return Prediction(torch.where(rows, a.x0, b.x0), torch.where(rows, a.eps, b.eps), frac)

    return denoise


def autoguided(
    denoise: Denoise,
    weaker: Denoise,
    scale: float,
    schedule: Schedule | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """weaker + scale (denoise - weaker): away from where both err, the weaker one more.

    Karras et al. 2024 (arXiv:2406.02507), section 4. The weaker one is a smaller network, or the same after
    less training, for the same task and the same conditions; it need not predict the same. Variety stays,
    other than with `classifier_free`, which may be the denoise. The variance is that of denoise.

    scale: 1 is no guidance, and then only denoise is run.
    interval: see `within`; None = everywhere. Another needs the schedule.
    """
    if scale == 1:
        return denoise
    if schedule is None and interval is not None:
        raise ValueError("guidance is kept to an interval only with the schedule: pass it too")

    def guided(x: Tensor, t: Tensor) -> Prediction:
        out, weak = denoise(x, t), weaker(x, t)
        x0, eps = weak.x0 + scale * (out.x0 - weak.x0), weak.eps + scale * (out.eps - weak.eps)
        return Prediction(x0, eps, out.frac)

    return guided if interval is None or schedule is None else within(guided, denoise, schedule, interval)


def parse_interval(interval: object) -> tuple[float, float]:
    """(low, high) with 0 <= low < high <= 1, of two numbers or of "0.2,0.8"; `ValueError` for all else."""
    ends = interval.split(",") if isinstance(interval, str) else interval
    try:
        if not isinstance(ends, Sequence) or any(isinstance(end, bool) for end in ends):
            raise TypeError
        low, high = map(float, ends)
    except (TypeError, ValueError):
        raise ValueError(f"an interval is two numbers, such as 0.2,0.8, not {interval!r}") from None
    if not 0 <= low < high <= 1:
        raise ValueError(f"an interval rises within 0 (the picture) and 1 (noise alone), not {interval!r}")
    return low, high


class Projection(NamedTuple):
    """How adaptive projected guidance changes an update, see `projected`."""

    eta: float  # weight of what is parallel to the picture: 1 as plain guidance has it, 0 nothing of it
    norm: float  # the longest update, as a vector of all of a picture's values
    momentum: float  # of the updates before; negative takes them back


def projected(apg: Projection) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(update, x0, t) -> the update for a strong guidance that would oversaturate, [N, ...] of levels [N].

    Sadat et al. 2024 (APG, arXiv:2410.02416), algorithm 1: the update gets momentum times the one before,
    is cut to a length, and counts by eta where it only makes x0 stronger. It remembers, picture by picture:
    the one before is of the nearest level above that the walk was at, so that momentum begins anew with every
    walk, and is the same however often a level is asked for (by `heun`, and by `repaint`, which goes back).
    """
    walk: list[tuple[Tensor, Tensor]] = []  # levels [N] and their updates, from noise down

    def project(update: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        if apg.momentum:
            walk[:] = [(level, other) for level, other in walk if (level > t).any()]
            before = torch.zeros_like(update)
            for level, other in walk:
                before = torch.where(_rows(level > t, before), other, before)
            update = update + apg.momentum * before
            walk[:] = [*walk[-2:], (t, update.detach())]  # no sampler goes back by more than two levels
        length, along = update.flatten(1).norm(dim=1), x0.flatten(1)
        update = update * like((apg.norm / length.clamp_min(1e-12)).clamp(max=1), x0)
        share = (update.flatten(1) * along).sum(1) / along.square().sum(1).clamp_min(1e-12)
        return update + (apg.eta - 1) * like(share, x0) * x0

    return project


def _rows(chosen: Tensor, x: Tensor) -> Tensor:
    """Bool [N], ready to choose rows of x [N, ...]."""
    return chosen.view(-1, *[1] * (x.dim() - 1)).to(x.device)


def parse_projection(apg: object) -> Projection:
    """eta, norm and momentum, of three numbers or of "0,15,-0.5"; `ValueError` for all else."""
    parts = apg.split(",") if isinstance(apg, str) else apg
    try:
        if not isinstance(parts, Sequence) or any(isinstance(part, bool) for part in parts):
            raise TypeError
        eta, norm, momentum = map(float, parts)
    except (TypeError, ValueError):
        raise ValueError(
            f"apg is three numbers, eta, norm and momentum, such as 0,15,-0.5, not {apg!r}"
        ) from None
    if not (0 <= eta <= 1 and 0 < norm <= 1e9 and -1 < momentum < 1):
        raise ValueError(
            f"apg's eta is from 0 to 1, its norm above 0 (to 1e9), its momentum between -1 and 1, not {apg!r}"
        )
    return Projection(eta, norm, momentum)


def rescaled(guided: Prediction, cond: Prediction, x: Tensor, level: Level, share: float) -> Prediction:
    """guided, with its v scaled by `share` of the way to the standard deviation of cond's.

    Lin et al. 2023, eqs. 15 and 16, for a strong guidance that would overexpose. The paper's
    network predicts v; here v is scaled whatever the network predicts, so that all agree.

    x: [N, ...], what both are predictions of.
    """
    v, wanted = guided.v(level), cond.v(level).flatten(1).std(1)
    factor = share * wanted / v.flatten(1).std(1) + (1 - share)
    return Prediction.from_v(x, like(factor, x) * v, level, guided.frac)


def static_threshold(x0: Tensor, limit: float | Tensor = 1.0) -> Tensor:
    """x0 [N, ...] within [-limit, limit]. Where it is infinite it is NaN then: what has overflowed (guidance
    that is too strong) is not to pass for white or black."""
    within = x0.clamp(-limit, limit) if isinstance(limit, Tensor) else x0.clamp(-limit, limit)
    return within.where(x0.isfinite(), torch.nan)


def dynamic_threshold(x0: Tensor, limit: float = 1.0, percentile: float = 0.995) -> Tensor:
    """Each of x0 [N, ...] clipped at that percentile of its magnitudes, and scaled to the limit.

    Saharia et al. 2022 (Imagen), section 2.3. A picture whose percentile is within the limit is
    only clamped, as by `static_threshold`.
    """
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    # One at a time: torch.quantile takes no more than 2^24 numbers.
    most = torch.stack([one.quantile(percentile) for one in x0.abs().flatten(1)])
    most = like(most.clamp(min=limit), x0)
    return static_threshold(x0, most) * (limit / most)


THRESHOLDS: dict[str, Callable[..., Tensor]] = {"static": static_threshold, "dynamic": dynamic_threshold}


def clamp_x0(
    denoise: Denoise, schedule: Schedule, limit: float | Callable[[Tensor], Tensor] = 1.0
) -> Denoise:
    """x0 within [-limit, limit], or limit(x0), such as `dynamic_threshold`; eps follows.

    Both still make x. It belongs outside of classifier-free guidance, which leaves the range.
    """
    if not callable(limit) and not limit > 0:
        raise ValueError(f"the limit of x0 must be positive, got {limit}")

    def clamped(x: Tensor, t: Tensor) -> Prediction:
        out = denoise(x, t)
        x0 = limit(out.x0) if callable(limit) else static_threshold(out.x0, limit)
        return Prediction.from_x0(x, x0, schedule.at(t), out.frac)

    return clamped


def gradient(denoise: Denoise, schedule: Schedule, grad_fn: GradFn, scale: float = 1.0) -> Denoise:
    """Adds scale * grad to the score, as eps - sigma scale grad; x0 follows.

    Dhariwal & Nichol 2021, eq. 14. `grad_fn` runs with gradients enabled. Where alpha is 0, x
    tells nothing of the picture, and the prediction is left alone.
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        out, level = denoise(x, t), schedule.at(t)
        sigma = torch.where(level.alpha > 0, level.sigma, 0.0)
        of_x0 = sigma**2 / torch.where(level.alpha > 0, level.alpha, 1.0)
        push = scale * gradient_of(grad_fn, x, t, out.x0)
        return Prediction(out.x0 + like(of_x0, x) * push, out.eps - like(sigma, x) * push, out.frac)

    return guided


def gradient_of(grad_fn: GradFn, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """grad_fn(x, t, x0), run with gradients enabled and then cut off from them."""
    with torch.enable_grad():
        return grad_fn(x, t, x0).detach()


def together(*grad_fns: GradFn | None) -> GradFn | None:
    """The sum of gradients, which is that of independent conditions; None if there are none."""
    terms = [grad_fn for grad_fn in grad_fns if grad_fn is not None]
    if not terms:
        return None
    return lambda x, t, x0: sum((grad_fn(x, t, x0) for grad_fn in terms), start=x.new_zeros(()))


def gradient_on_x0(
    denoise: Denoise, schedule: Schedule, objective: Callable[[Tensor], Tensor], through_network: bool = False
) -> GradFn:
    """The gradient, with respect to x, of an objective on the predicted x0, for `gradient`.

    objective: x0 [N, ...] -> log-probability [N], for example a scaled CLIP similarity.
    through_network: differentiate the network too (exact, another forward and a backward);
        otherwise its Jacobian is taken to be alpha / (alpha^2 + sigma^2), which it is for
        unit-variance Gaussian data (the r_t^2 of Song et al. 2023, Pi-GDM, section 3).
    """

    def through(x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(objective(denoise(x, t).x0).sum(), x)[0]

    def beside(x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        x0 = x0.detach().requires_grad_()
        level = schedule.at(t)
        jacobian = level.alpha / (level.alpha**2 + level.sigma**2)
        return like(jacobian, x) * torch.autograd.grad(objective(x0).sum(), x0)[0]

    return through if through_network else beside
