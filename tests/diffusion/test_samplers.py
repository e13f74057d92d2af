"""Samplers against data whose denoiser is known exactly; test_properties.py has what holds for all."""

from functools import partial

import pytest
import torch
from mixture import COVARIANCE, MEAN, exact_x0, gaussian_left, gaussian_x0, sample_mixture, wavy

from unclip.diffusion.analytic import x0_variance
from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.gaussian import diffuse, optimal_variance, posterior_variance
from unclip.diffusion.guidance import bind, gradient
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS, ddim, ddpm, dpm_solver_2m, heun, invert
from unclip.diffusion.schedule import SCHEDULES, Schedule, evenly_spaced, make_schedule

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


def sample(sampler, schedule, steps, n=3000, variance="small"):
    noise = Batched(n, seed=1)
    denoise = bind(Denoiser(exact_x0(schedule), schedule, "x0", variance))
    return last(sampler(denoise, schedule, noise((2,)), steps, noise)).x


def check_moments(x, bias=0.0):
    """Mean and covariance within 3 standard errors of the sample, and a bias besides."""
    spread = COVARIANCE.diag()
    of_mean, of_covariance = spread.sqrt(), (spread * spread[:, None] + COVARIANCE**2).sqrt()
    assert ((x.mean(0) - MEAN).abs() < 3 * of_mean / len(x) ** 0.5 + bias).all()
    assert ((x.T.cov() - COVARIANCE).abs() < 3 * of_covariance / len(x) ** 0.5 + bias).all()


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_reproduces_the_moments(name, variance):
    schedule = make_schedule(name, 100)
    x = sample(ddpm, schedule, evenly_spaced(100, 100), variance=variance)
    # The latents' noise begins at much more than none: of so few steps each leaves out some of the spread.
    check_moments(x, 0.05 if name == "linear-latent" else 0.0)


def test_ddim_with_eta_1_is_ancestral_sampling():
    """With the same noise, step for step, and so also in its moments."""
    schedule, steps = make_schedule("cosine", 100), evenly_spaced(100, 100)
    x = sample(STOCHASTIC_DDIM, schedule, steps)
    torch.testing.assert_close(x, sample(ddpm, schedule, steps), rtol=1e-8, atol=1e-8)
    check_moments(x)


@pytest.mark.parametrize("eta", [0.25, 0.8])
def test_ddim_with_a_share_of_fresh_noise_is_the_papers(eta):
    """Song et al. 2021, eqs. 12 and 16, whose alphas are our squares."""
    schedule, noise = make_schedule("cosine", 100), Batched(4, seed=2)
    x, fresh = Batched(4, seed=3)((3,)), Batched(4, seed=2)((3,))
    model = bind(wavy(schedule, "v", "small"))
    out, (at, to) = model(x, torch.full((4,), 80)), (schedule.at(t).alpha ** 2 for t in (80, 50))
    std = eta * ((1 - to) / (1 - at)).sqrt() * (1 - at / to).sqrt()
    expected = to.sqrt() * out.x0 + (1 - to - std**2).sqrt() * out.eps + std * fresh
    first, end = ddim(model, schedule, x, [80, 50, 0], noise, eta)
    torch.testing.assert_close(first.x, expected)
    assert torch.equal(end.x, end.x0)  # none is added to the data


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_with_half_its_noise_fresh_reproduces_the_moments(name):
    check_moments(sample(partial(ddim, eta=0.5), make_schedule(name, 100), evenly_spaced(100, 100)), 0.02)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_2m, heun])
@pytest.mark.parametrize("name", SCHEDULES)
def test_few_deterministic_steps_reproduce_the_moments(sampler, name):
    x = sample(sampler, make_schedule(name), evenly_spaced(1000, 50))
    check_moments(x, bias=0.03)


def slope(sizes, errors):
    """The exponent of error ~ size^exponent, by least squares."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize("name", SCHEDULES)
def test_order_of_convergence(name):
    """The error at a fixed level falls as steps^-order on the probability-flow ODE."""
    schedule = make_schedule(name, 16000)
    denoise = bind(Denoiser(exact_x0(schedule), schedule, "x0"))
    start, strides = Batched(64, seed=0)((2,)), [800, 400, 200, 100]

    def solve(solver, stride):
        return last(solver(denoise, schedule, start, list(range(12000, 3999, -stride)))).x

    exact = solve(heun, 20)
    for sampler, order in [(ddim, 1), (dpm_solver_2m, 2), (heun, 2)]:
        errors = [float((solve(sampler, s) - exact).abs().mean()) for s in strides]
        assert slope(strides, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_picture_made_noise_and_back(name):
    """The error of the way there and back falls as 1 / steps; the noise is noise."""
    schedule = make_schedule(name)
    denoise = bind(Denoiser(exact_x0(schedule), schedule, "x0"))
    x, counts, errors = sample_mixture(600, torch.Generator().manual_seed(5)), [25, 50, 100, 200], []
    for count in counts:
        steps = evenly_spaced(1000, count)
        there = list(invert(denoise, schedule, x, steps[::-1]))
        assert [step.t for step in there] == steps[:-1][::-1]
        back = last(ddim(denoise, schedule, there[-1].x, steps)).x
        errors.append(float((back - x).norm(dim=1).mean()))
    assert slope(counts, errors) == pytest.approx(-1, abs=0.3) and errors[-1] < 0.03
    noise = there[-1].x
    torch.testing.assert_close(noise.mean(0), torch.zeros(2).double(), atol=4 / 600**0.5, rtol=0)
    torch.testing.assert_close(noise.T.cov(), torch.eye(2).double(), atol=4 * (2 / 600) ** 0.5, rtol=0)


@pytest.mark.parametrize("steps", [[0, 5, 5], [10, 5, 0]])
def test_inversion_goes_up(steps):
    schedule = make_schedule("cosine")
    model = bind(wavy(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="must ascend"):
        list(invert(model, schedule, torch.randn(1, 3, 2, 2), steps))
    with pytest.raises(ValueError, match="must be in 1000..0"):
        list(invert(model, schedule, torch.randn(1, 3, 2, 2), [0, 1001]))


@pytest.mark.parametrize("sampler, calls", [(ddpm, 6), (ddim, 6), (dpm_solver_2m, 6), (heun, 11)])
def test_what_a_sampler_costs(sampler, calls):
    seen = []
    schedule, noise = make_schedule("cosine"), Noise([0])
    model = bind(wavy(schedule, "v", "small"))

    def counted(x, t):
        seen.append(int(t[0]))
        return model(x, t)

    list(sampler(counted, schedule, noise((3, 2, 2)), evenly_spaced(1000, 6), noise))
    assert len(seen) == calls and min(seen) == 1 and max(seen) == 1000


def test_heun_is_karras_step_where_alpha_is_1():
    """Karras et al. 2022, algorithm 1, lines 4 to 8, on levels without any scaling."""
    sigmas = torch.tensor([0.0, 0.3, 1.0, 4.0], dtype=torch.float64)
    schedule = Schedule("edm", 3, torch.ones(4).double(), sigmas)
    denoise, x = bind(Denoiser(lambda x, t: x.sin() / (t[0] + 2), schedule, "x0")), Batched(5, seed=3)((2,))
    for t, s in [(3, 2), (2, 1), (1, 0)]:
        step = last(heun(denoise, schedule, x, [t, s]))

        def d(x, t):
            return (x - x.sin() / (t - 1 + 2)) / sigmas[t]

        expected = x + (sigmas[s] - sigmas[t]) * d(x, t)
        if s > 0:
            expected = x + (sigmas[s] - sigmas[t]) * 0.5 * (d(x, t) + d(expected, s))
        torch.testing.assert_close(step.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_analytic_variance_is_the_closed_form_of_gaussian_data(name):
    schedule, variance, steps = make_schedule(name), 0.3, [1000, 990, 500, 100, 1, 0]
    denoiser = Denoiser(gaussian_x0(schedule, variance), schedule, "x0")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 2000, 8, dtype=torch.float64, generator=generator)
    batches = [(variance**0.5 * x0, {}) for x0 in noise]
    table = x0_variance(denoiser, schedule, batches, steps, generator)
    assert list(table) == steps[:-1]
    for t, found in table.items():
        level = schedule.at(t)
        assert found == pytest.approx(float(gaussian_left(level, variance)), rel=4 * (2 / 64000) ** 0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_analytic_variance_is_the_papers(name):
    """Bao et al. 2022, theorem 1, in terms of Gamma = E||eps||^2 / d, for what it calls lambda^2."""
    schedule, variance = make_schedule(name), 0.3
    denoiser = Denoiser(gaussian_x0(schedule, variance), schedule, "x0")
    x0, noise = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]).double()  # exact for squares
    for t, s in [(990, 980), (800, 300), (50, 1)]:
        (a_t, s_t), (a_s, s_s) = ((level.alpha, level.sigma) for level in (schedule.at(t), schedule.at(s)))
        x = diffuse(variance**0.5 * x0[None], noise[None], schedule.at(t))
        gamma = denoiser(x, torch.tensor([t])).eps.square().mean()
        lambda_2 = posterior_variance(schedule.at(t), schedule.at(s))
        paper = lambda_2 + (s_t * a_s / a_t - (s_s**2 - lambda_2).sqrt()) ** 2 * (1 - gamma)
        given = gaussian_left(schedule.at(t), variance)
        found = optimal_variance(given, schedule.at(t), schedule.at(s))
        torch.testing.assert_close(found, paper, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [[1000, 100], [1000, 600, 300, 100]])
def test_with_the_analytic_variance_few_ancestral_steps_are_exact(name, steps):
    """For Gaussian data: at the last level the variance is that of data there. The bounds err."""
    schedule, variance = make_schedule(name), 0.3
    noise = Batched(20000, seed=2)
    start, end = schedule.at(steps[0]), schedule.at(steps[-1])
    x = (start.alpha**2 * variance + start.sigma**2).sqrt() * noise((2,))
    table = {t: float(gaussian_left(schedule.at(t), variance)) for t in steps}
    expected = float(end.alpha**2 * variance + end.sigma**2)

    def found(frac, **option):
        model = Denoiser(gaussian_x0(schedule, variance), schedule, "x0", frac)
        return float(last(ddpm(bind(model), schedule, x, steps, noise, **option)).x.var())

    tolerance = 4 * (2 / 40000) ** 0.5
    assert found("small", x0_variance=table) == pytest.approx(expected, rel=tolerance)
    assert found("small") < (1 - 2 * tolerance) * expected
    assert found("large") > (1 + 2 * tolerance) * expected


def test_a_table_of_variances_must_know_every_step():
    schedule = make_schedule("cosine")
    model = bind(wavy(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="no entry for t = 5"):
        list(ddpm(model, schedule, torch.randn(1, 3), [10, 5, 0], Noise([0]), x0_variance={10: 0.1}))
    with pytest.raises(ValueError, match="no data"):
        x0_variance(model, schedule, [], [10, 0], torch.Generator())


def test_a_shift_of_the_mean_agrees_with_the_score_for_small_steps():
    """The two guided drifts differ by a share of beta: exact as steps shrink, and not before."""
    schedule = make_schedule("linear", 4000)
    model = bind(Denoiser(exact_x0(schedule), schedule, "x0"))
    target = torch.tensor([1.5, -1.0]).double()

    def climb(x, t, x0):
        return 0.5 * (target - x)

    def sampled(denoise, count, **option):
        steps, noise = [2000 - 1000 * k // count for k in range(count + 1)], Batched(64, seed=7)
        return last(ddpm(denoise, schedule, noise((2,)), steps, noise, **option)).x

    def apart(count):
        by_score = sampled(gradient(model, schedule, climb), count)
        by_mean = sampled(model, count, shift=climb)
        plain = sampled(model, count)
        return float((by_score - by_mean).norm() / (by_score - plain).norm())

    assert apart(200) < 0.2 * apart(20)


@each_sampler
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 4, 3, 3)])
def test_any_shape_and_a_single_step(sampler, shape):
    schedule, noise = make_schedule("cosine"), Noise([1, 2])
    model = wavy(schedule, "v", "small")
    steps = list(sampler(bind(model), schedule, noise(shape), evenly_spaced(1000, 1), noise))
    assert [step.t for step in steps] == [0] and steps[0].x.shape == (2, *shape)


@pytest.mark.bitwise
@each_sampler
def test_a_sampler_may_stop_and_start_at_any_level(sampler):
    schedule, noise = make_schedule("cosine"), Noise([1, 2])
    model = wavy(schedule, "x0", "small")
    step = last(sampler(bind(model), schedule, noise((3, 2, 2)), [600, 300, 100], noise))
    assert step.t == 100 and step.x.isfinite().all()


@each_sampler
@pytest.mark.parametrize(
    "steps, message", [([], "two levels"), ([9, 10, 0], "descend"), ([1001, 0], "must be in")]
)
def test_step_lists_that_make_no_sense_are_refused(sampler, steps, message):
    schedule, noise = make_schedule("cosine"), Noise([0])
    model = bind(wavy(schedule, "x0", "small"))
    with pytest.raises(ValueError, match=message):
        list(sampler(model, schedule, noise((3, 2, 2)), steps, noise))


@pytest.mark.parametrize("sampler", [ddpm, STOCHASTIC_DDIM])
def test_missing_noise_is_named(sampler):
    schedule = make_schedule("cosine")
    model = bind(wavy(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="pass it a Noise"):
        list(sampler(model, schedule, torch.randn(1, 3, 2, 2), [10, 5, 0]))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share(eta):
    schedule = make_schedule("cosine")
    model = bind(wavy(schedule, "x0", "small"))
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        list(ddim(model, schedule, torch.randn(1, 3, 2, 2), [10, 0], eta=eta))
