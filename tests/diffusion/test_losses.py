"""Training losses."""

import math
from itertools import pairwise, product

import pytest
import torch
from mixture import gaussian_left, gaussian_x0

from unclip.diffusion.denoiser import Denoiser, Prediction
from unclip.diffusion.gaussian import beta, diffuse, optimal_variance, posterior_variance
from unclip.diffusion.likelihood import prior_term
from unclip.diffusion.losses import WEIGHTINGS, loss_terms, mean_flat, vlb_terms
from unclip.diffusion.schedule import SCHEDULES, make_schedule, step_list

T = torch.tensor([1, 2, 30, 100])
PREDICTED = [(name, predicts) for name, predicts in product(SCHEDULES, ["eps", "x0", "v"])
             if (name, predicts) != ("flow", "eps")]  # fmt: skip


def batch(shape=(4, 3, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, 256, shape, generator=generator) / 127.5 - 1
    return x0, torch.randn(shape, generator=generator)


each_combination = pytest.mark.parametrize(
    "name, predicts, variance",
    [(*pair, variance) for pair in PREDICTED for variance in ("small", "large", "learned")],
)


@each_combination
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 4, 4)])
def test_the_simple_loss_is_the_error_of_what_the_network_predicts(name, predicts, variance, shape):
    schedule, (x0, noise) = make_schedule(name, 100), batch(shape)
    answer = torch.randn(4, 6 if variance == "learned" else 3, *shape[2:])
    denoiser = Denoiser(lambda x, t: answer, schedule, predicts, variance)
    terms = loss_terms(denoiser, x0, T, noise, {})
    true = {"eps": noise, "x0": x0, "v": Prediction(x0, noise).v(schedule.at(T))}[predicts]
    assert terms.keys() == {"loss", "mse"} and terms["loss"].shape == (4,)
    torch.testing.assert_close(terms["mse"], mean_flat((answer[:, :3] - true) ** 2))
    assert torch.equal(terms["loss"], terms["mse"])


@pytest.mark.parametrize("name, predicts", PREDICTED)
def test_the_hybrid_losss_bound_trains_the_variance_alone(name, predicts):
    schedule, (x0, noise) = make_schedule(name, 100), batch()
    true = Prediction(x0, noise)
    true = true.v(schedule.at(T)) if predicts == "v" else getattr(true, predicts)
    mean = (true + 0.01 * torch.randn(4, 3, 4, 4)).requires_grad_()
    values = torch.zeros(4, 3, 4, 4, requires_grad=True)
    denoiser = Denoiser(lambda x, t: torch.cat([mean, values], 1), schedule, predicts, "learned")
    terms = loss_terms(denoiser, x0, T, noise, {}, kind="hybrid")
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vlb"])

    def gradients(loss):
        return torch.autograd.grad(loss.sum(), [mean, values], retain_graph=True, allow_unused=True)

    of_mean, of_values = gradients(terms["vlb"])
    assert of_mean is None or (of_mean == 0).all()
    assert (of_values.abs().flatten(1).sum(1) > 0).all()
    of_mse, _ = gradients(terms["mse"])
    assert torch.equal(gradients(terms["loss"])[0], of_mse)


def test_the_bound_is_least_at_the_true_answer():
    """The true mean and the posterior's variance leave no divergence but at the data."""
    schedule, (x0, noise) = make_schedule("cosine", 100), batch()
    level, below, before = (schedule.at(t) for t in (T, T - 1, (T + 1).clamp(max=100)))
    x = level.like(x0).alpha * x0 + level.like(x0).sigma * noise

    def bound(x0_hat, frac):
        return vlb_terms(Prediction(x0_hat, noise, frac), x0, x, level, below, before)

    best = bound(x0, 0.0)
    assert (best[1:] == 0).all() and best[0] > 0
    assert (bound(x0 + 0.1, 0.0) > best).all()
    assert (bound(x0, torch.full_like(x0, 0.5))[1:] > 0).all()


@pytest.mark.parametrize("variance", [0.09, 1.0])
@pytest.mark.parametrize("spec", [100, 7, "ddim10", "10,5,2", 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_of_the_exact_denoiser_is_analytic(name, spec, variance):
    """For data N(0, v), with the best variance, but for the data's own term.

    Then p(x_s | x_t) = q(x_s | x_t), and what remains of the sum of the divergences is the mutual
    information of x0 and the first noisy level, log(1 + v SNR) / 2, and of the marginal at T with
    the prior KL(N(0, alpha^2 v + sigma^2) || N(0, 1)). The squares in both are averaged exactly by
    four points, (+-1, +-1).
    """
    schedule, steps = make_schedule(name, 100), step_list(spec, 100)
    x0, noise = torch.tensor([[[1.0, 1, -1, -1]], [[1, -1, 1, -1]]], dtype=torch.float64)
    x0, total = variance**0.5 * x0, 0.0
    denoiser = Denoiser(gaussian_x0(schedule, variance), schedule, "x0")
    for before, t, s in zip([steps[0], *steps[:-3]], steps[:-2], steps[1:-1], strict=True):
        levels = schedule.at(t), schedule.at(s), schedule.at(before)
        small, large = posterior_variance(*levels[:2]).log(), beta(*levels[:2]).log()
        best = optimal_variance(gaussian_left(levels[0], variance), *levels[:2]).log()
        x = diffuse(x0, noise, levels[0])
        frac = ((best - small) / (large - small)).expand(x.shape)
        out = denoiser(x, torch.tensor([t]))
        total += float(vlb_terms(Prediction(out.x0, out.eps, frac), x0, x, *levels))
    total += float(prior_term(x0, schedule.at(steps[0])))

    first, last = schedule.at(steps[-2]), schedule.at(steps[0])
    marginal = float(last.alpha**2 * variance + last.sigma**2)
    nats = 0.5 * math.log(1 + variance * float(first.snr)) + 0.5 * (marginal - 1 - math.log(marginal))
    assert total == pytest.approx(nats / math.log(2), rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_term_of_the_bound_is_analytic_with_fixed_variance(name):
    """KL of the two means' difference, whose square is Var(x0 | x_t) on average, in nats:

    small: of_x0^2 Var / (2 small); large: that over beta, and (small / large - 1 - log) / 2.
    """
    schedule, variance = make_schedule(name, 100), 0.09
    x0, noise = torch.tensor([[[1.0, 1, -1, -1]], [[1, -1, 1, -1]]], dtype=torch.float64)
    x0 = variance**0.5 * x0
    for t, s in pairwise(step_list(10, 100)[:-1]):
        levels = schedule.at(t), schedule.at(s), schedule.at(min(t + 1, 100))
        small, large = posterior_variance(*levels[:2]), beta(*levels[:2])
        square = (levels[1].alpha * large / levels[0].sigma ** 2) ** 2 * gaussian_left(levels[0], variance)
        expected = {
            "small": square / small / 2,
            "large": (square / large + small / large - 1 - (small / large).log()) / 2,
        }
        x = diffuse(x0, noise, levels[0])
        for kind, nats in expected.items():
            out = Denoiser(gaussian_x0(schedule, variance), schedule, "x0", kind)(x, torch.tensor([t]))
            found = float(vlb_terms(out, x0, x, *levels))
            assert found == pytest.approx(float(nats) / math.log(2), rel=1e-9)


@pytest.mark.parametrize("kind", ["hybrid", "vlb", "rescaled", "auxiliary"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chain_of_one_step_has_a_finite_loss(name, kind):
    schedule, (x0, noise) = make_schedule(name, 1), batch()
    denoiser = Denoiser(lambda x, t: torch.cat([x, x], 1), schedule, "x0", "learned")
    terms = loss_terms(denoiser, x0, torch.ones(4, dtype=torch.int64), noise, kind=kind)
    assert all(term.isfinite().all() for term in terms.values())


def answering(answer, schedule, predicts, variance="small"):
    return Denoiser(lambda x, t: answer, schedule, predicts, variance)


def test_the_bound_alone_and_rescaled_train_the_mean_too():
    schedule, (x0, noise) = make_schedule("cosine", 100), batch()
    mean = (x0 + 0.01 * noise).requires_grad_()
    levels = schedule.at(T), schedule.at(T - 1), schedule.at((T + 1).clamp(max=100))
    x = diffuse(x0, noise, levels[0])
    alone = loss_terms(answering(mean, schedule, "x0"), x0, T, noise, kind="vlb")
    rescaled = loss_terms(answering(mean, schedule, "x0"), x0, T, noise, kind="rescaled")
    expected = vlb_terms(Prediction(mean, noise), x0, x, *levels)
    assert alone.keys() == rescaled.keys() == {"loss", "vlb"}
    torch.testing.assert_close(alone["loss"], expected)
    torch.testing.assert_close(rescaled["loss"], 100 * expected)
    (of_mean,) = torch.autograd.grad(alone["loss"].sum(), mean)
    assert (of_mean.abs().flatten(1).sum(1) > 0).all()


def test_the_auxiliary_term_is_a_unit_gaussians_likelihood():
    """-log2 N(x0; predicted, I) a dimension, less its constant log2(2 pi) / 2, times lambda."""
    schedule, (x0, noise) = make_schedule("linear", 100), batch()
    guess = 0.5 * x0
    terms = loss_terms(answering(guess, schedule, "x0"), x0, T, noise, kind="auxiliary", auxiliary_weight=0.3)
    density = torch.distributions.Normal(guess, 1.0)
    bits = -mean_flat(density.log_prob(x0)) / math.log(2) - 0.5 * math.log2(2 * math.pi)
    torch.testing.assert_close(terms["auxiliary"], 0.3 * bits)
    alone = loss_terms(answering(guess, schedule, "x0"), x0, T, noise, kind="vlb")
    torch.testing.assert_close(terms["vlb"], alone["vlb"])
    default = loss_terms(answering(guess, schedule, "x0"), x0, T, noise, kind="auxiliary")
    torch.testing.assert_close(default["auxiliary"], 0.001 * bits)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", ["simple", "hybrid"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_weightings_are_the_papers_where_variance_is_preserved(name, kind, weighting):
    schedule, (x0, noise) = make_schedule(name, 100), batch()
    snr = schedule.at(T).snr
    expected = {
        # Hang et al. 2023, section 3.4
        ("min_snr", "eps"): torch.minimum(snr, 5 * torch.ones(4)) / snr,
        ("min_snr", "x0"): torch.minimum(snr, 5 * torch.ones(4)),
        ("min_snr", "v"): torch.minimum(snr, 5 * torch.ones(4)) / (snr + 1),
        # the same cap on v's own weight, SNR + 1 (Salimans & Ho 2022, section 4)
        ("min_snr_plus_one", "eps"): torch.minimum(snr + 1, 5 * torch.ones(4)) / snr,
        ("min_snr_plus_one", "x0"): torch.minimum(snr + 1, 5 * torch.ones(4)),
        ("min_snr_plus_one", "v"): torch.minimum(snr + 1, 5 * torch.ones(4)) / (snr + 1),
        # Choi et al. 2022, for eps; x0's error is eps's over SNR, and v's is (1 + SNR) times x0's
        ("p2", "eps"): 1 / (1 + snr),
        ("p2", "x0"): snr / (1 + snr),
        ("p2", "v"): snr / (1 + snr) ** 2,
    }
    for predicts in ("eps", "x0", "v"):
        answer = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
        model = answering(answer, schedule, predicts, "learned")
        plain = loss_terms(model, x0, T, noise, kind=kind)
        made = loss_terms(model, x0, T, noise, kind=kind, weighting=weighting)
        weight = expected[weighting, predicts].float()
        torch.testing.assert_close(made["mse"], weight * plain["mse"])
        torch.testing.assert_close(made["loss"], made["mse"] + made.get("vlb", 0))
        if kind == "hybrid":
            assert torch.equal(made["vlb"], plain["vlb"])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_weighted_loss_is_the_same_whatever_is_predicted(name, weighting):
    """One and the same guess of x0 costs the same, told as eps, x0 or v; nothing at alpha = 0."""
    schedule, (x0, noise) = make_schedule(name, 100), batch()
    x0, noise, t = x0.double(), noise.double(), torch.tensor([1, 20, 60, 99])
    level = schedule.at(t)
    x = diffuse(x0, noise, level)
    guess = Prediction.from_x0(x, 0.9 * x0, level)
    losses = []
    for predicts in [p for n, p in PREDICTED if n == name]:
        answer = guess.v(level) if predicts == "v" else getattr(guess, predicts)
        model = answering(answer, schedule, predicts)
        losses.append(loss_terms(model, x0, t, noise, weighting=weighting)["loss"])
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-9, atol=0)
    ends = loss_terms(answering(0.9 * x0, schedule, "x0"), x0, T, noise, weighting=weighting)["loss"]
    assert ends.isfinite().all() and (ends[-1] == 0) == (name == "flow" and weighting != "min_snr_plus_one")


def test_conditioning_reaches_the_network():
    schedule, (x0, noise) = make_schedule("linear", 100), batch()
    denoiser = Denoiser(lambda x, t, c: c.expand_as(x), schedule, "x0")
    terms = loss_terms(denoiser, x0, T, noise, dict(c=torch.zeros(())))
    torch.testing.assert_close(terms["mse"], mean_flat(x0**2))


def test_bad_input_is_named():
    x0, noise = batch()
    denoiser = Denoiser(lambda x, t: x, make_schedule("linear", 100), "x0")
    with pytest.raises(ValueError, match="unknown loss 'l2'; known: simple, hybrid, vlb, rescaled, aux"):
        loss_terms(denoiser, x0, T, noise, {}, kind="l2")
    with pytest.raises(ValueError, match="unknown weighting 'snr'; known: none, min_snr, min_snr_plus_one"):
        loss_terms(denoiser, x0, T, noise, {}, weighting="snr")
    with pytest.raises(ValueError, match="needs learned variance, not 'small'"):
        loss_terms(denoiser, x0, T, noise, {}, kind="hybrid")
    for kind in ("vlb", "rescaled", "auxiliary"):
        with pytest.raises(ValueError, match=f"'p2' is of the squared error, of which the {kind} loss"):
            loss_terms(denoiser, x0, T, noise, {}, kind=kind, weighting="p2")
