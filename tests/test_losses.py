"""Training losses."""

from itertools import product

import pytest
import torch

from unclip.diffusion import Denoiser, Prediction, loss_terms, make_schedule
from unclip.diffusion.losses import mean_flat, vlb_terms
from unclip.diffusion.schedule import SCHEDULES

T = torch.tensor([1, 2, 30, 100])


def batch(shape=(4, 3, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, 256, shape, generator=generator) / 127.5 - 1
    return x0, torch.randn(shape, generator=generator)


each_combination = pytest.mark.parametrize(
    "name, predicts, variance",
    list(product(SCHEDULES, ["eps", "x0", "v"], ["small", "large", "learned"])),
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


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_hybrid_losss_bound_trains_the_variance_alone(name, predicts):
    schedule, (x0, noise) = make_schedule(name, 100), batch()
    mean = torch.randn(4, 3, 4, 4, requires_grad=True)
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


def test_a_chain_of_one_step_has_a_finite_loss():
    schedule, (x0, noise) = make_schedule("cosine", 1), batch()
    denoiser = Denoiser(lambda x, t: torch.cat([x, x], 1), schedule, "x0", "learned")
    terms = loss_terms(denoiser, x0, torch.ones(4, dtype=torch.int64), noise, kind="hybrid")
    assert all(term.isfinite().all() for term in terms.values())


def test_conditioning_reaches_the_network():
    schedule, (x0, noise) = make_schedule("linear", 100), batch()
    denoiser = Denoiser(lambda x, t, c: c.expand_as(x), schedule, "x0")
    terms = loss_terms(denoiser, x0, T, noise, dict(c=torch.zeros(())))
    torch.testing.assert_close(terms["mse"], mean_flat(x0**2))


def test_bad_input_is_named():
    x0, noise = batch()
    denoiser = Denoiser(lambda x, t: x, make_schedule("linear", 100), "x0")
    with pytest.raises(ValueError, match="unknown loss 'l2'; known: simple, hybrid"):
        loss_terms(denoiser, x0, T, noise, {}, kind="l2")
    with pytest.raises(ValueError, match="needs learned variance, not 'small'"):
        loss_terms(denoiser, x0, T, noise, {}, kind="hybrid")
