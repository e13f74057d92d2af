"""Autoguidance, against its formula in every space, an integral that is known, and itself."""

from itertools import pairwise, product

import pytest
import torch
from mixture import gaussian_x0, wavy
from torch import Tensor

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import autoguided
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import SCHEDULES, make_schedule

SCHEDULE = make_schedule("cosine", 100)
SCALE = 2.5


def gaussian(schedule, variance: float) -> Denoiser:
    return Denoiser(gaussian_x0(schedule, variance), schedule, "x0")


@pytest.mark.parametrize("schedule, predicts", [*product(SCHEDULES, ["x0", "v"]), ("cosine", "eps")])
def test_it_is_the_same_map_in_every_space(schedule, predicts):
    schedule = make_schedule(schedule, 100)
    strong, weak = wavy(schedule, predicts, "small"), gaussian(schedule, 0.8)
    x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 30, 70, 98])
    a, b, got = strong(x, t), weak(x, t), autoguided(strong, weak, SCALE)(x, t)
    level = schedule.at(t)
    for space in ("x0", "eps"):
        one, other = getattr(a, space), getattr(b, space)
        torch.testing.assert_close(getattr(got, space), SCALE * one + (1 - SCALE) * other)
    torch.testing.assert_close(got.v(level), SCALE * a.v(level) + (1 - SCALE) * b.v(level))
    alpha, sigma = (value[:, None].to(x) for value in (level.alpha, level.sigma))
    torch.testing.assert_close(alpha * got.x0 + sigma * got.eps, x, atol=1e-4, rtol=1e-4)  # both still make x
    assert torch.equal(torch.as_tensor(got.frac), torch.as_tensor(a.frac))


def spread(variance: float, other: float, steps: int = 20_000) -> float:
    """What becomes of noise of variance 1 by the exact flow of dx/dt, as a factor; both data are Gaussian.

    With y = x / alpha and s = sigma / alpha the flow is dy/ds = (y - x0) / s; x0 is a factor of y here.
    """
    level = SCHEDULE.at(torch.tensor([100 - 1, 1]))
    ends = (level.sigma / level.alpha).log()
    logs = torch.linspace(*ends.tolist(), steps + 1, dtype=torch.float64)
    s = ((logs[1:] + logs[:-1]) / 2).exp()
    x0 = [of / (of + s**2) for of in (variance, other)]
    rate = 1 - (SCALE * x0[0] + (1 - SCALE) * x0[1])  # d log y / d log s
    return (rate * logs.diff()).sum().exp().item()


def test_the_flow_between_two_gaussians_is_known():
    """The stronger one knows data of a narrower spread; guidance narrows it further, as the integral says."""
    denoise = autoguided(gaussian(SCHEDULE, 0.3), gaussian(SCHEDULE, 0.6), SCALE)
    start = torch.ones(1, 1, dtype=torch.float64)
    x, walk = start, list(range(99, 0, -1))
    for t, s in pairwise(walk):  # DDIM's step, which is Euler's in these units
        out = denoise(x, torch.tensor([t]))
        now = SCHEDULE.at(torch.tensor([s]))
        x = now.alpha * out.x0 + now.sigma * out.eps
    first, last = SCHEDULE.at(torch.tensor([99])), SCHEDULE.at(torch.tensor([1]))
    factor = (x / last.alpha / (start / first.alpha)).item()
    assert factor == pytest.approx(spread(0.3, 0.6), rel=0.03)
    assert abs(factor / spread(0.3, 0.3) - 1) > 0.1  # and is not what it is without


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_and_an_interval_go_with_it(name):
    strong, weak = wavy(SCHEDULE, "v", "small"), gaussian(SCHEDULE, 0.8)

    def walk(denoise) -> list[Tensor]:
        start, steps = Noise([1, 2])((5,)), (100, 60, 30, 0)
        return [step.x for step in SAMPLERS[name](denoise, SCHEDULE, start, steps, Noise([3, 4]))]

    plain, led = walk(strong), walk(autoguided(strong, weak, SCALE))
    assert not torch.allclose(plain[-1], led[-1], atol=1e-3)
    assert all(map(torch.equal, walk(autoguided(strong, weak, SCALE, SCHEDULE, (0.0, 1.0))), led))
    assert all(map(torch.equal, walk(autoguided(strong, weak, SCALE, SCHEDULE, (0.0, 1e-9))), plain))
    inner = walk(autoguided(strong, weak, SCALE, SCHEDULE, (0.3, 0.7)))[-1]
    assert not torch.allclose(inner, led[-1], atol=1e-3) and not torch.allclose(inner, plain[-1], atol=1e-3)


def test_a_scale_of_1_asks_no_weaker_one_and_an_interval_needs_levels():
    strong = wavy(SCHEDULE, "v", "small")
    assert autoguided(strong, None, 1.0) is strong
    with pytest.raises(ValueError, match="only with the schedule"):
        autoguided(strong, strong, 2.0, interval=(0.1, 0.9))
