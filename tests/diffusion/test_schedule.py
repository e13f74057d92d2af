"""Schedules, step lists, and the identities between two levels."""

import math

import pytest
import torch

from unclip.diffusion.gaussian import (
    beta,
    diffuse,
    discretized_log_likelihood,
    kl,
    log_variance,
    optimal_variance,
    posterior,
    posterior_variance,
    tanh_normal_cdf,
)
from unclip.diffusion.schedule import SCHEDULES, Level, check_steps, evenly_spaced, make_schedule, step_list

each_schedule = pytest.mark.parametrize("name", SCHEDULES)


@each_schedule
@pytest.mark.parametrize("timesteps", [1, 2, 7, 20, 1000, 4000])
def test_a_schedule_goes_from_data_to_noise(name, timesteps):
    schedule = make_schedule(name, timesteps)
    level = schedule.at(torch.arange(timesteps + 1))
    assert (level.alpha[0], level.sigma[0]) == (1, 0)
    assert level.alpha.dtype == torch.float64 and len(level.alpha) == timesteps + 1
    assert (level.log_snr.diff() < 0).all() and (level.snr.diff() < 0).all()
    assert (level.alpha[:-1] > 0).all() and (level.sigma[1:] > 0).all()


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("timesteps", [1, 7, 1000])
def test_variance_is_preserved_and_something_is_left_of_the_picture(name, timesteps):
    level = make_schedule(name, timesteps).at(torch.arange(timesteps + 1))
    torch.testing.assert_close(level.alpha_bar + level.sigma**2, torch.ones(timesteps + 1).double())
    assert level.alpha[-1] > 0


def test_flow_is_a_straight_line_to_pure_noise():
    schedule = make_schedule("flow", 8)
    expected = torch.arange(9, dtype=torch.float64) / 8
    assert torch.equal(schedule.sigma, expected) and torch.equal(schedule.alpha, 1 - expected)
    assert schedule.at(8).alpha == 0 and schedule.at(8).log_snr == -math.inf


def test_cosine_is_the_papers():
    level = make_schedule("cosine").at(500)
    ends = [math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 for x in (0.5, 0)]
    assert float(level.alpha_bar) == pytest.approx(ends[0] / ends[1], rel=1e-12)


def test_the_cosine_schedules_last_beta_is_capped():
    schedule = make_schedule("cosine")
    assert float(beta(schedule.at(1000), schedule.at(999))) == pytest.approx(0.999)


@pytest.mark.parametrize("timesteps", [1, 2, 50, 1000])
def test_even_steps_exist_for_every_number(timesteps):
    for n in range(1, timesteps + 1):
        steps = evenly_spaced(timesteps, n)
        assert steps[0] == timesteps and steps[-1] == 0 and len(steps) == n + 1
        assert steps == sorted(set(steps), reverse=True)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be between 1 and 1000"):
        evenly_spaced(1000, steps)


@pytest.mark.parametrize("timesteps", [1, 2, 50, 333])
def test_a_number_is_a_step_list_also_as_text(timesteps):
    for n in range(1, timesteps + 1):
        assert step_list(n, timesteps) == step_list(f" {n}", timesteps) == evenly_spaced(timesteps, n)


def test_sections_visit_their_first_and_last_levels():
    assert step_list("2,3,1", 12) == [9, 8, 7, 5, 4, 1, 0]  # by hand: 1..4, 5..8, 9..12
    assert step_list("2, 2", 5) == [5, 4, 3, 1, 0]  # 5 = 3 + 2
    assert step_list("1000,1000", 2000) == list(range(2000, -1, -1))


@pytest.mark.parametrize("timesteps", [1, 2, 7, 50, 1000])
def test_strided_lists_have_the_least_stride_that_makes_them(timesteps):
    found = 0
    for n in range(1, timesteps + 1):
        strides = [k for k in range(1, max(timesteps, 2)) if math.ceil(timesteps / k) == n]
        if strides:
            found += 1
            assert step_list(f"ddim{n}", timesteps) == [*range(1, timesteps + 1, strides[0])][::-1] + [0]
        else:
            with pytest.raises(ValueError, match=f"no integer stride makes {n} steps of {timesteps}"):
                step_list(f"ddim{n}", timesteps)
    assert found > 0


def test_fast27_is_glides_sections_but_for_their_first_level():
    fast, slow = step_list("fast27", 1000), step_list("10,10,3,2,2", 1000)
    assert (len(fast), fast[0], slow[0]) == (28, 998, 1000) and fast[1:] == slow[1:]
    assert step_list("fast27", 50)[0] == 48


@pytest.mark.parametrize(
    "spec, timesteps, message",
    [
        (0, 10, "must be a positive number, sections such as '10,10,3,2,2', .*, got 0"),
        (-3, 10, "got -3"),
        (2.5, 10, "got 2.5"),
        (True, 10, "got True"),
        (None, 10, "got None"),
        ("", 10, "got ''"),
        ("0", 10, "got '0'"),
        ("many", 10, "got 'many'"),
        ("3,,2", 10, "got '3,,2'"),
        ("3,0", 10, "got '3,0'"),
        ("3,-1", 10, "got '3,-1'"),
        ("ddim", 10, "got 'ddim'"),
        ("ddim0", 10, "got 'ddim0'"),
        ("fast28", 10, "got 'fast28'"),
        (11, 10, "steps must be between 1 and 10, got 11"),
        ("11", 10, "steps must be between 1 and 10, got 11"),
        ("2,6", 10, "section 2 of 2,6 has 5 of the 10 levels, which cannot make 6 steps"),
        ("1,1,1", 2, "section 3 of 1,1,1 has 0 of the 2 levels"),
        ("fast27", 40, "section 1 of 10,10,3,2,2 has 8 of the 40 levels"),
        ("ddim37", 1000, "no integer stride makes 37 steps of 1000; near are ddim36 and ddim38"),
        ("ddim1001", 1000, "no integer stride makes 1001 steps of 1000; near are ddim1000"),
        ("ddim1", 1000, "no integer stride makes 1 steps of 1000; near are ddim2"),
    ],
)
def test_step_lists_that_make_no_sense_are_refused(spec, timesteps, message):
    with pytest.raises(ValueError, match=message):
        step_list(spec, timesteps)


def test_bad_input_is_named():
    schedule = make_schedule("linear", 10)
    with pytest.raises(ValueError, match="unknown schedule 'sine'; known: cosine, linear"):
        make_schedule("sine")
    with pytest.raises(ValueError, match="at least 1 timestep"):
        make_schedule("cosine", 0)
    for t in (11, -1, torch.tensor([3, 11]), torch.tensor([-1, 2])):
        with pytest.raises(ValueError, match=r"t must be in 0\.\.10"):
            schedule.at(t)
    for steps, message in [
        ([5], "two levels"),
        ([3, 5, 0], "descend"),
        ([3, 3, 0], "descend"),
        ([11, 0], r"in 10\.\.0"),
        ([5, -1], r"in 10\.\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_steps(steps, schedule)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 5, 5), (4, 3, 2, 5, 5)])
def test_levels_meet_data_of_any_shape(shape):
    schedule, x = make_schedule("cosine"), torch.randn(shape)
    one = diffuse(x, x, schedule.at(300))
    each = diffuse(x, x, schedule.at(torch.tensor([300, 5, 300, 900])))
    assert one.dtype == torch.float32 and torch.equal(one[0], each[0])
    assert schedule.at(300).like(x.bfloat16()).alpha.dtype == torch.float32
    assert schedule.at(300).like(x.double()).alpha.dtype == torch.float64


def test_levels_are_looked_up_where_t_is():
    schedule = make_schedule("cosine")
    t = torch.tensor([1, 5])
    assert schedule.at(t.to("meta")).like(torch.zeros(2, 3, device="meta")).sigma.is_meta
    assert schedule.at(t).alpha.device.type == schedule.alpha.device.type == "cpu"


@each_schedule
def test_the_optimal_variance_makes_the_step_of_gaussian_data_exact(name):
    """x0 ~ N(0, v): p(x_s | x_t) has the variance of x_s given x_t, here by conditioning."""
    schedule, v = make_schedule(name), 0.3
    for t, s in [(1000, 1), (1000, 600), (700, 650), (2, 1), (5, 0)]:
        level_t, level_s = schedule.at(t), schedule.at(s)
        of_t, of_s = (level.alpha**2 * v + level.sigma**2 for level in (level_t, level_s))
        a = level_t.alpha / level_s.alpha
        expected = of_s - (a * of_s) ** 2 / of_t
        given = v - (level_t.alpha * v) ** 2 / of_t
        torch.testing.assert_close(optimal_variance(given, level_t, level_s), expected, rtol=1e-9, atol=0)


@each_schedule
def test_a_long_step_is_the_product_of_short_ones(name):
    """q(x_s | x_t, x0) over two steps, by way of the level between."""
    schedule = make_schedule(name)
    t, m, s = (schedule.at(i) for i in (700, 400, 50))
    x, x0 = torch.randn(2, 5, 3, dtype=torch.float64)
    middle, middle_variance = posterior(x, x0, t, m)
    mean, variance = posterior(middle, x0, m, s)
    carried = (m.alpha / s.alpha * (s.sigma / m.sigma) ** 2) ** 2 * middle_variance
    direct, direct_variance = posterior(x, x0, t, s)
    torch.testing.assert_close(mean, direct, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance + carried, direct_variance, rtol=1e-12, atol=1e-12)


def test_the_posterior_serves_levels_that_do_not_preserve_variance():
    """Bayes' rule by hand for x_s = alpha_s x0 + sigma_s eps and x_t = a x_s + sqrt(beta) eps."""
    t, s = Level(0.3, 0.7), Level(0.8, 0.2)
    a, added = 0.3 / 0.8, 0.7**2 - (0.3 / 0.8 * 0.2) ** 2
    precision = 1 / 0.2**2 + a**2 / added
    x, x0 = torch.tensor([0.4]).double(), torch.tensor([-0.9]).double()
    mean, variance = posterior(x, x0, t, s)
    assert float(variance) == pytest.approx(1 / precision)
    assert float(mean) == pytest.approx((0.8 * -0.9 / 0.2**2 + a * 0.4 / added) / precision)


@each_schedule
def test_log_variance_lies_between_the_posteriors_and_beta(name):
    schedule = make_schedule(name)
    t, s, before = schedule.at(2), schedule.at(1), schedule.at(3)
    assert log_variance(0.0, t, s, before) == posterior_variance(t, s).log()
    assert log_variance(1.0, t, s, before) == beta(t, s).log()
    t, s, before = schedule.at(1), schedule.at(0), schedule.at(2)
    clipped = posterior_variance(before, t).log()
    assert log_variance(0.0, t, s, before) == log_variance(1.0, t, s, before) == clipped
    learned = log_variance(torch.ones(4, 2, dtype=torch.float64), t, s, before)
    torch.testing.assert_close(learned, beta(t, s).log().expand(4, 2))


def normal(x, mean, log_var):
    return (-0.5 * ((x - mean) ** 2 * (-log_var).exp() + log_var + math.log(2 * math.pi))).exp()


def test_kl_equals_its_integral():
    p = torch.tensor([[0.3], [-1.2]]).double(), torch.tensor([[-0.4], [0.6]]).double()
    q = torch.tensor([[-0.5], [0.1]]).double(), torch.tensor([[0.2], [-0.3]]).double()
    x = torch.linspace(-15, 15, 30001, dtype=torch.float64)[None]
    density = normal(x, *p)
    log_ratio = (density.clamp(min=1e-300) / normal(x, *q).clamp(min=1e-300)).log()
    integral = torch.trapezoid(density * log_ratio, x)
    torch.testing.assert_close(kl(*p, *q)[:, 0], integral, rtol=1e-6, atol=1e-9)
    assert (kl(*p, *p) == 0).all()


def test_8_bit_likelihood_equals_its_integral():
    x = torch.arange(256, dtype=torch.float64)[1:-1] / 127.5 - 1
    mean, log_std = torch.tensor(0.13).double(), torch.tensor(-2.5).double()
    exact = discretized_log_likelihood(x, mean, log_std, cdf=torch.special.ndtr).exp()
    inside = x[:, None] + torch.linspace(-1 / 255, 1 / 255, 201, dtype=torch.float64)
    integral = torch.trapezoid(normal(inside, mean, 2 * log_std), inside)
    torch.testing.assert_close(exact, integral, rtol=1e-5, atol=2e-12)
    close = discretized_log_likelihood(x, mean, log_std).exp()
    assert (close - exact).abs().max() < 2e-3 * exact.max()


@pytest.mark.parametrize("log_std", [-5.0, -2.0, 1.0])
@pytest.mark.parametrize("cdf", [tanh_normal_cdf, torch.special.ndtr])
def test_8_bit_likelihoods_add_up_to_one(log_std, cdf):
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean, log_std = torch.tensor(-0.8).double(), torch.tensor(log_std).double()
    total = discretized_log_likelihood(x, mean, log_std, cdf).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@each_schedule
@pytest.mark.parametrize("shift", [0.25, 0.5, 3.0])
def test_a_shift_moves_every_log_snr_and_keeps_what_the_schedule_keeps(name, shift):
    """log SNR + 2 log(shift) (Hoogeboom et al. 2023); for flow it is the shift of Esser et al. 2024."""
    plain, moved = (make_schedule(name, 50, shift=one).at(torch.arange(51)) for one in (1.0, shift))
    inner = slice(1, 50)
    torch.testing.assert_close(
        moved.log_snr[inner], plain.log_snr[inner] + 2 * math.log(shift), rtol=0, atol=1e-12
    )
    assert (moved.alpha[0], moved.sigma[0]) == (1, 0) and moved.alpha.dtype == torch.float64
    if name == "flow":
        expected = plain.sigma / (shift + (1 - shift) * plain.sigma)  # m t / (1 + (m - 1) t), m = 1 / shift
        torch.testing.assert_close(moved.sigma, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(moved.alpha + moved.sigma, torch.ones(51).double())
    else:
        torch.testing.assert_close(moved.alpha_bar + moved.sigma**2, torch.ones(51).double())


@each_schedule
def test_no_shift_is_the_schedule_itself(name):
    one, other = make_schedule(name, 20), make_schedule(name, 20, shift=1.0)
    assert torch.equal(one.alpha, other.alpha) and torch.equal(one.sigma, other.sigma)


@pytest.mark.parametrize("shift", [0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_no_positive_number_is_refused(shift):
    with pytest.raises(ValueError, match="shift must be a finite number above 0"):
        make_schedule("cosine", 10, shift=shift)
