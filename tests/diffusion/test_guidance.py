"""What a network's output means, and the parts that change it."""

import pytest
import torch
from mixture import exact_x0, sample_mixture

from unclip.diffusion.denoiser import Denoiser, Prediction
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.guidance import (
    bind,
    clamp_x0,
    classifier_free,
    dynamic_threshold,
    gradient,
    gradient_on_x0,
    static_threshold,
    together,
)
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import SCHEDULES, evenly_spaced, make_schedule

SCHEDULE = make_schedule("cosine")
T = torch.tensor([1, 40, 500, 990])
GENERATOR = torch.Generator().manual_seed(0)


def truth(generator=None):
    generator = generator or GENERATOR
    x0, noise = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=generator)
    return x0, noise, diffuse(x0, noise, SCHEDULE.at(T))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_a_perfect_network_gives_back_picture_and_noise(predicts):
    x0, noise, x = truth()
    true = Prediction(x0, noise)
    answer = {"eps": noise, "x0": x0, "v": true.v(SCHEDULE.at(T))}[predicts]
    out = Denoiser(lambda x, t: answer, SCHEDULE, predicts)(x, T)
    torch.testing.assert_close(out.x0, x0)
    torch.testing.assert_close(out.eps, noise)
    torch.testing.assert_close(out.v(SCHEDULE.at(T)), true.v(SCHEDULE.at(T)))


def test_a_network_is_fed_t_minus_1_and_may_answer_in_half_precision():
    seen = []

    def network(x, t, cond):
        seen.append((t, cond))
        return torch.cat([x, torch.ones_like(x)], 1).bfloat16()

    out = Denoiser(network, SCHEDULE, "v", "learned")(torch.randn(4, 3, 2, 2), T, cond="c")
    assert torch.equal(seen[0][0], (T - 1).float()) and seen[0][1] == "c"
    assert out.x0.dtype == out.eps.dtype == torch.float32
    assert (out.frac == 1).all() and out.frac.shape == out.x0.shape


def test_fixed_variances_are_two_numbers():
    for variance, frac in (("small", 0.0), ("large", 1.0)):
        assert Denoiser(lambda x, t: x, SCHEDULE, "v", variance)(torch.randn(4, 3), T).frac == frac


@pytest.mark.parametrize("variance, channels", [("small", 6), ("learned", 3)])
def test_a_network_with_wrong_channels_is_named(variance, channels):
    model = Denoiser(lambda x, t: torch.zeros(4, channels, 2, 2), SCHEDULE, "eps", variance)
    with pytest.raises(ValueError, match=rf"made \(4, {channels}, 2, 2\).*{variance} variance"):
        model(torch.randn(4, 3, 2, 2), T)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown prediction 'noise'; known: eps, x0, v"):
        Denoiser(None, SCHEDULE, predicts="noise")
    with pytest.raises(ValueError, match="unknown variance 'big'; known: small, large, learned"):
        Denoiser(None, SCHEDULE, variance="big")
    with pytest.raises(ValueError, match="eps cannot be predicted with the flow schedule"):
        Denoiser(None, make_schedule("flow"), "eps")


def network_of(predicts):
    """One and the same model, told in eps, x0 or v."""

    def network(x, t, c):
        out = Prediction.from_v(x, x.sin() + c.view(-1, 1, 1, 1), SCHEDULE.at(t.long() + 1))
        return out.v(SCHEDULE.at(t.long() + 1)) if predicts == "v" else getattr(out, predicts)

    return network


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_classifier_free_guidance_is_the_same_in_eps_x0_and_v(scale):
    _, _, x = truth()
    cond, null = dict(c=torch.tensor([0.5, -0.3, 0.2, 0.9])), dict(c=torch.zeros(4))
    outs = []
    for predicts in ("eps", "x0", "v"):
        model = Denoiser(network_of(predicts), SCHEDULE, predicts)
        outs.append(classifier_free(model, cond, null, scale)(x, T))
        back = diffuse(outs[-1].x0, outs[-1].eps, SCHEDULE.at(T))
        torch.testing.assert_close(back, x)
    for out in outs[1:]:
        torch.testing.assert_close(out.x0, outs[0].x0)
        torch.testing.assert_close(out.eps, outs[0].eps)
    sides = [model(x, T, **side).v(SCHEDULE.at(T)) for side in (null, cond)]
    expected = sides[0] + scale * (sides[1] - sides[0])
    torch.testing.assert_close(outs[0].v(SCHEDULE.at(T)), expected)


def test_classifier_free_guidance_is_one_doubled_batch_with_conds_variance():
    sizes = []

    def network(x, t, c, flag):
        sizes.append(len(x))
        return torch.cat([x, c.view(-1, 1, 1, 1).expand_as(x)], 1)

    model, x = Denoiser(network, SCHEDULE, "v", "learned"), torch.randn(4, 3, 2, 2)
    sides = dict(c=torch.ones(4), flag=None), dict(c=-torch.ones(4), flag=None)
    assert (classifier_free(model, *sides, scale=2.0)(x, T).frac == 1).all() and sizes == [8]
    assert (classifier_free(model, *sides, scale=1.0)(x, T).frac == 1).all() and sizes == [8, 4]
    with pytest.raises(ValueError, match=r"cond has \['c', 'flag'\], but null has \['c'\]"):
        classifier_free(model, sides[0], dict(c=torch.zeros(4)), scale=2.0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaled_guidance_is_the_papers(share):
    """Lin et al. 2023, eqs. 14 to 16, on a network that predicts v, as theirs does."""
    _, _, x = truth()
    cond, null = dict(c=torch.tensor([0.5, -0.3, 0.2, 0.9])), dict(c=torch.zeros(4))
    model = Denoiser(network_of("v"), SCHEDULE, "v")
    pos, neg = (model(x, T, **side).v(SCHEDULE.at(T)) for side in (cond, null))
    cfg = neg + 5.0 * (pos - neg)
    rescaled = cfg * pos.std([1, 2, 3], keepdim=True) / cfg.std([1, 2, 3], keepdim=True)
    expected = share * rescaled + (1 - share) * cfg
    for predicts in ("eps", "x0", "v"):  # ... and the same from the others
        model = Denoiser(network_of(predicts), SCHEDULE, predicts)
        out = classifier_free(model, cond, null, 5.0, share, SCHEDULE)(x, T)
        torch.testing.assert_close(out.v(SCHEDULE.at(T)), expected)
        torch.testing.assert_close(diffuse(out.x0, out.eps, SCHEDULE.at(T)), x)
    plain = classifier_free(model, cond, null, 5.0, 0.0, SCHEDULE)(x, T)
    assert torch.equal(plain.x0, classifier_free(model, cond, null, 5.0)(x, T).x0)


def test_a_rescaling_is_a_share_and_needs_the_schedule():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            classifier_free(None, {}, {}, 2.0, share, SCHEDULE)
    with pytest.raises(ValueError, match="pass it too"):
        classifier_free(None, {}, {}, 2.0, 0.7)


def test_dynamic_thresholding_by_hand():
    """201 numbers, of whose magnitudes the 99.5th percentile is the second largest."""
    bright, dim = torch.linspace(-4, 4, 201), torch.linspace(-0.5, 0.5, 201)
    bright[0], dim[0] = 9.0, 1.7
    x0 = torch.stack([bright, dim]).view(2, 3, 67)
    out = dynamic_threshold(x0).flatten(1)
    torch.testing.assert_close(out[0], bright.clamp(-4, 4) / 4)
    torch.testing.assert_close(out[1], dim.clamp(-1, 1))  # its percentile is within the limit
    assert torch.equal(static_threshold(x0, 2.0), x0.clamp(-2, 2))
    within = 0.9 * x0 / x0.abs().max()
    assert torch.equal(dynamic_threshold(within), within)
    torch.testing.assert_close(dynamic_threshold(x0, 2.0).flatten(1)[0], bright.clamp(-4, 4) / 2)
    torch.testing.assert_close(dynamic_threshold(x0, percentile=1.0).flatten(1)[0], bright / 9)
    assert dynamic_threshold(x0.half()).dtype == torch.float32  # as all that meets the data


@pytest.mark.parametrize("limit", [0.7, torch.tanh, dynamic_threshold, static_threshold])
def test_clamped_predictions_still_make_x(limit):
    _, _, x = truth()
    model = Denoiser(lambda x, t: 3 * x, SCHEDULE, "v")
    out = clamp_x0(bind(model), SCHEDULE, limit)(x, T)
    assert out.x0.abs().max() <= (1 if callable(limit) else limit)
    torch.testing.assert_close(diffuse(out.x0, out.eps, SCHEDULE.at(T)), x)


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match="must be positive"):
        clamp_x0(lambda x, t: None, SCHEDULE, 0)


@pytest.mark.parametrize("through_network", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gradient_guidance_of_a_gaussian_is_exact(name, through_network):
    """For x0 ~ N(0, 1) and a log-likelihood linear in x0, also where the variance of x is not kept."""
    schedule, x = make_schedule(name, 1000), truth(torch.Generator().manual_seed(1))[2]
    level = schedule.at(T).like(x)
    variance = level.alpha**2 + level.sigma**2
    model = bind(Denoiser(lambda x, t: level.alpha / variance * x, schedule, "x0"))
    direction = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def objective(x0):
        return (x0 * direction).flatten(1).sum(1)

    push = gradient_on_x0(model, schedule, objective, through_network)
    out = gradient(model, schedule, push, scale=2.0)(x, T)
    # exp(2 direction . x0) tilts N(0, 1) to N(2 direction, 1), whose denoiser is:
    tilted = (level.alpha * x + level.sigma**2 * 2 * direction) / variance
    torch.testing.assert_close(out.x0, tilted)
    torch.testing.assert_close(diffuse(out.x0, out.eps, schedule.at(T)), x)


def test_gradients_are_added_and_none_is_none():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert together() is None and together(None, None) is None
    both = together(lambda x, t, x0: x * 2, None, lambda x, t, x0: t[:, None] * x0)
    assert torch.equal(both(x, torch.tensor([3, 4]), x), 2 * x + torch.tensor([[3], [4]]) * x)


def test_a_gradient_is_left_out_where_nothing_is_left_of_the_picture():
    schedule = make_schedule("flow", 10)
    model, x = bind(Denoiser(lambda x, t: x.sin(), schedule, "x0")), torch.randn(2, 3)
    t = torch.tensor([9, 10])
    plain, out = model(x, t), gradient(model, schedule, lambda x, t, x0: torch.ones_like(x))(x, t)
    torch.testing.assert_close(out.x0[0], plain.x0[0] + 0.9**2 / 0.1)
    torch.testing.assert_close(out.eps[0], plain.eps[0] - 0.9)
    assert torch.equal(out.x0[1], plain.x0[1]) and torch.equal(out.eps[1], plain.eps[1])


def test_the_gradient_through_the_network_is_the_derivative():
    x = sample_mixture(4, torch.Generator().manual_seed(3))
    model = bind(Denoiser(exact_x0(SCHEDULE), SCHEDULE, "x0"))

    def objective(x0):
        return x0.sin().sum(1)

    with torch.no_grad():
        ours = gradient(model, SCHEDULE, gradient_on_x0(model, SCHEDULE, objective, True))(x, T)
        h, eps = 1e-5, model(x, T).eps
        for i in range(2):
            step = torch.zeros(2, dtype=torch.float64)
            step[i] = h
            up, down = (objective(model(x + sign * step, T).x0) for sign in (1, -1))
            slope = (up - down) / (2 * h)
            pushed = eps[:, i] - SCHEDULE.at(T).sigma * slope
            torch.testing.assert_close(ours.eps[:, i], pushed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("through_network", [True, False])
def test_gradients_guide_every_sampler(name, through_network):
    model = bind(Denoiser(exact_x0(SCHEDULE), SCHEDULE, "x0"))
    target = torch.tensor([1.5, -1.0])

    def objective(x0):
        return -2 * ((x0 - target) ** 2).sum(1)

    def distance(scale):
        push = gradient_on_x0(model, SCHEDULE, objective, through_network)
        guided, noise = gradient(model, SCHEDULE, push, scale), Noise(range(64))
        steps = SAMPLERS[name](guided, SCHEDULE, noise((2,)), evenly_spaced(1000, 30), noise)
        *_, step = steps
        assert not step.x.requires_grad
        return (step.x - target).norm(dim=1).mean()

    assert distance(1.0) < 0.7 * distance(0.0)


@pytest.mark.parametrize("threshold", [static_threshold, dynamic_threshold])
def test_no_threshold_makes_a_picture_of_what_is_infinite(threshold):
    x0 = torch.linspace(-2, 2, 2000).reshape(1, 1, -1)
    x0[0, 0, [3, 7, 9]] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert threshold(x0)[0, 0, [3, 7, 9]].isnan().all()
