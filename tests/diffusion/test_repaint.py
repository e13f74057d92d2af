"""RePaint against data of which the answer is known, and what it must keep."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from mixture import MEANS, STDS, WEIGHTS, exact_x0

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import bind
from unclip.diffusion.noise import Noise
from unclip.diffusion.repaint import repaint
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import SCHEDULES, evenly_spaced, make_schedule

STEPS = evenly_spaced(1000, 20)
KNOWN = torch.tensor([[True, False]])


class Batched:
    """Fresh noise for many points at once, where a stream for each would be slow."""

    def __init__(self, n: int) -> None:
        self.n, self.generator = n, torch.Generator().manual_seed(0)

    def __call__(self, shape):
        return torch.randn(self.n, *shape, generator=self.generator, dtype=torch.float64)


def filled(schedule, sampler: str, value: float, resamplings: int, n: int = 2000) -> torch.Tensor:
    """The second numbers [n] of points of the mixture whose first number is ``value``."""
    noise, denoise = Batched(n), bind(Denoiser(exact_x0(schedule), schedule, "x0"))

    def sample(x, steps):
        return SAMPLERS[sampler](denoise, schedule, x, steps, noise)

    x0 = torch.tensor([[value, 9.0]], dtype=torch.float64)
    *_, step = repaint(sample, schedule, noise((2,)), STEPS, noise, x0, KNOWN, resamplings)
    assert (step.x[:, 0] == value).all()
    return step.x[:, 1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_filled_in_goes_with_what_is_known(sampler, name):
    """The mean of one coordinate of a mixture, given the other, is found by resampling alone; its spread as
    nearly as twenty steps find any."""
    value, schedule = 0.6, make_schedule(name)
    share = WEIGHTS / STDS[:, 0] * (-(((value - MEANS[:, 0]) / STDS[:, 0]) ** 2) / 2).exp()
    share = share / share.sum()
    mean = share @ MEANS[:, 1]
    spread = (share @ (STDS[:, 1] ** 2 + MEANS[:, 1] ** 2) - mean**2).sqrt()
    once, often = (filled(schedule, sampler, value, resamplings) for resamplings in (1, 10))
    assert abs(often.mean() - mean) < 0.06 < abs(once.mean() - mean)
    assert abs(often.std() - spread) < 0.2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_nothing_known_and_no_resampling_it_is_the_sampler_a_step_at_a_time(sampler):
    schedule, x = make_schedule("cosine"), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    denoise, steps = bind(Denoiser(exact_x0(schedule), schedule, "x0")), [900, 500, 100, 0]
    sample = partial(SAMPLERS[sampler], denoise, schedule)
    nothing, noise = torch.zeros(1, 2, dtype=torch.bool), Noise([0, 1, 2])
    walk = list(repaint(lambda x, steps: sample(x, steps, noise), schedule, x, steps, noise, x, nothing, 1))
    assert [step.t for step in walk] == steps[1:]
    if sampler == "ddpm":
        return  # draws its own noise between
    for (t, s), step in zip(pairwise(steps), walk, strict=True):
        *_, last = sample(x, [t, s])
        assert torch.equal(step.x, last.x)
        x = last.x


def test_every_step_but_the_last_is_taken_as_often_as_asked():
    schedule, seen = make_schedule("cosine"), []
    x0 = torch.tensor([[0.6, 9.0]])

    def sample(x, steps):
        seen.append(tuple(steps))
        return SAMPLERS["ddim"](bind(Denoiser(exact_x0(schedule), schedule, "x0")), schedule, x, steps)

    walk = list(repaint(sample, schedule, torch.ones(2, 2), [900, 400, 0], Noise([0, 1]), x0, KNOWN, 3))
    assert seen == [(900, 400)] * 3 + [(400, 0)] and [step.t for step in walk] == [400, 400, 400, 0]
    assert all((step.x0[:, 0] == 0.6).all() for step in walk)  # what is shown on the way, too
    with pytest.raises(ValueError, match="at least once, not 0 times"):
        list(repaint(sample, schedule, torch.ones(2, 2), [900, 0], Noise([0, 1]), x0, KNOWN, 0))
