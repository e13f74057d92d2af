"""Samplers against a mixture of Gaussians with its exact denoiser, and properties of all."""

import math
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from mixture import COVARIANCE, MEAN, exact_x0

from unclip.diffusion import (
    SAMPLERS,
    Denoiser,
    Noise,
    bind,
    clamp_x0,
    classifier_free,
    ddim,
    ddpm,
    dpm_solver_2m,
    evenly_spaced,
    make_schedule,
)
from unclip.diffusion.schedule import SCHEDULES

STOCHASTIC_DDIM = partial(ddim, eta=1.0)
EVERY = {**SAMPLERS, "ddim, eta 1": STOCHASTIC_DDIM}
each_sampler = pytest.mark.parametrize("sampler", EVERY.values(), ids=EVERY.keys())


class Batched:
    """Fresh noise for many points at once, where a stream for each would be slow."""

    def __init__(self, n, seed):
        self.n, self.generator = n, torch.Generator().manual_seed(seed)

    def __call__(self, shape):
        return torch.randn(self.n, *shape, generator=self.generator, dtype=torch.float64)


def last(iterator):
    *_, step = iterator
    return step


def sample(sampler, schedule, steps, n=4000, variance="small"):
    noise = Batched(n, seed=1)
    denoise = bind(Denoiser(exact_x0(schedule), schedule, "x0", variance))
    return last(sampler(denoise, schedule, noise((2,)), steps, noise)).x


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_reproduces_the_moments(name, variance):
    schedule = make_schedule(name, 100)
    x = sample(ddpm, schedule, evenly_spaced(100, 100), variance=variance)
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, atol=0.05, rtol=0)


def test_ddim_with_eta_1_is_ancestral_sampling():
    """With the same noise, step for step, and so also in its moments."""
    schedule, steps = make_schedule("cosine", 100), evenly_spaced(100, 100)
    x = sample(STOCHASTIC_DDIM, schedule, steps)
    torch.testing.assert_close(x, sample(ddpm, schedule, steps), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, atol=0.05, rtol=0)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_2m])
def test_few_deterministic_steps_reproduce_the_moments(sampler):
    schedule = make_schedule("cosine")
    x = sample(sampler, schedule, evenly_spaced(1000, 50))
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(x.T.cov(), COVARIANCE, atol=0.1, rtol=0)


@pytest.mark.parametrize("sampler, order", [(ddim, 1), (dpm_solver_2m, 2)])
def test_order_of_convergence(sampler, order):
    """The error at a fixed level falls as steps^-order on the probability-flow ODE."""
    schedule = make_schedule("linear", 16000)
    denoise = bind(Denoiser(exact_x0(schedule), schedule, "x0"))
    start = Batched(64, seed=0)((2,))

    def solve(stride, solver=sampler):
        return last(solver(denoise, schedule, start, list(range(12000, 3999, -stride)))).x

    exact, strides = solve(10, dpm_solver_2m), [400, 200, 100, 50]
    errors = [float((solve(s) - exact).abs().mean()) for s in strides]
    rise = [math.log2(a / b) for a, b in pairwise(errors)]
    assert sum(rise) / len(rise) == pytest.approx(order, abs=0.2)


def wave(channels):
    """A network that treats every picture and position alike, and depends on all it is given."""

    def network(x, t, shift=None):
        out = torch.sin(2 * x + t.view(-1, *[1] * (x.dim() - 1)).to(x) / 300)
        if shift is not None:
            out = out + shift.view(-1, *[1] * (x.dim() - 1))
        return torch.cat([out, out.cos()], dim=1)[:, :channels]

    return network


def denoiser(schedule, predicts, variance, channels=3):
    out = 2 * channels if variance == "learned" else channels
    return Denoiser(wave(out), schedule, predicts, variance)


COMBINATIONS = list(product(SCHEDULES, ["eps", "x0", "v"], ["small", "large", "learned"]))
each_combination = pytest.mark.parametrize("name, predicts, variance", COMBINATIONS)


@each_sampler
@each_combination
def test_every_combination(sampler, name, predicts, variance):
    schedule = make_schedule(name)
    model, steps, seeds = denoiser(schedule, predicts, variance), evenly_spaced(1000, 6), [3, 1, 4]
    shift, none = torch.tensor([0.5, -0.2, 0.1]), torch.zeros(3)

    def run(make, pick):
        noise = Noise([seeds[i] for i in pick])
        denoise = clamp_x0(make(dict(shift=shift[pick]), dict(shift=none[pick])), schedule)
        return list(sampler(denoise, schedule, noise((3, 4, 4)), steps, noise))

    def plain(cond, null):
        return bind(model, **cond)

    def guided(cond, null, scale=1.0):
        return classifier_free(model, cond, null, scale)

    whole = run(plain, [0, 1, 2])
    assert [step.t for step in whole] == steps[1:]
    assert torch.equal(whole[-1].x, whole[-1].x0)
    assert whole[-1].x.dtype == torch.float32 and not whole[-1].x.requires_grad
    assert whole[-1].x.abs().max() <= 1
    assert torch.equal(run(guided, [0, 1, 2])[-1].x, whole[-1].x)
    strong = partial(guided, scale=3.0)
    batch, alone = run(strong, [0, 1, 2])[-1].x, run(strong, [1])[-1].x
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(batch, whole[-1].x, atol=1e-2)


@each_sampler
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 4, 3, 3)])
def test_any_shape_and_a_single_step(sampler, shape):
    schedule, noise = make_schedule("cosine"), Noise([1, 2])
    model = denoiser(schedule, "v", "small", channels=shape[0])
    steps = list(sampler(bind(model), schedule, noise(shape), evenly_spaced(1000, 1), noise))
    assert [step.t for step in steps] == [0] and steps[0].x.shape == (2, *shape)


@each_sampler
def test_a_sampler_may_stop_and_start_at_any_level(sampler):
    schedule, noise = make_schedule("cosine"), Noise([1, 2])
    model = denoiser(schedule, "x0", "small")
    step = last(sampler(bind(model), schedule, noise((3, 2, 2)), [600, 300, 100], noise))
    assert step.t == 100 and step.x.isfinite().all()


@each_sampler
@pytest.mark.parametrize(
    "steps, message", [([], "two levels"), ([9, 10, 0], "descend"), ([1001, 0], "must be in")]
)
def test_step_lists_that_make_no_sense_are_refused(sampler, steps, message):
    schedule, noise = make_schedule("cosine"), Noise([0])
    model = bind(denoiser(schedule, "x0", "small"))
    with pytest.raises(ValueError, match=message):
        list(sampler(model, schedule, noise((3, 2, 2)), steps, noise))


@pytest.mark.parametrize("sampler", [ddpm, STOCHASTIC_DDIM])
def test_missing_noise_is_named(sampler):
    schedule = make_schedule("cosine")
    model = bind(denoiser(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="pass it a Noise"):
        list(sampler(model, schedule, torch.randn(1, 3, 2, 2), [10, 5, 0]))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share(eta):
    schedule = make_schedule("cosine")
    model = bind(denoiser(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        list(ddim(model, schedule, torch.randn(1, 3, 2, 2), [10, 0], eta=eta))
