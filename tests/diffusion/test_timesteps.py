"""Which t a batch sees: importance sampling against the public code's weights."""

from collections import deque

import pytest
import torch
from public_process import TABLES

from unclip.diffusion.timesteps import LossSecondMoment, uniform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def warm(timesteps: int = 5, seed: int = 0, **settings) -> LossSecondMoment:
    """A sampler whose histories are full of losses that grow with t."""
    sampler = LossSecondMoment(timesteps, **settings)
    t = torch.arange(1, timesteps + 1).repeat(20)
    sampler.update(t, t * torch.rand(len(t), generator=seeded(seed)))
    return sampler


@pytest.mark.parametrize("after", [11, 60])
def test_the_weights_are_those_of_the_public_code(after):
    config = TABLES["resampler_config"]
    sampler = LossSecondMoment(config["timesteps"], config["history_per_term"], config["uniform_prob"])
    for update in TABLES["resampler_updates"][:after]:
        losses = torch.tensor(update["losses"], dtype=torch.float64)
        sampler.update(torch.tensor(update["timesteps"]) + 1, losses)
    theirs = torch.tensor(TABLES[f"resampler_weights_after_{after}"], dtype=torch.float64)
    torch.testing.assert_close(sampler.probabilities(), theirs / theirs.sum(), rtol=1e-9, atol=0)


def test_it_is_uniform_until_every_t_has_its_full_history():
    sampler, t = LossSecondMoment(3, history=2), torch.tensor([1, 1, 2, 2, 3])
    sampler.update(t, torch.tensor([9.0, 9, 1, 1, 1]))
    assert (sampler.probabilities() == 1 / 3).all() and (sampler.weights(t) == 1).all()
    sampler.update(t[-1:], torch.ones(1))
    p = 0.999 * torch.tensor([9, 1, 1]).double() / 11 + 0.001 / 3
    torch.testing.assert_close(sampler.probabilities(), p)
    torch.testing.assert_close(sampler.weights(t), 1 / (3 * p[t - 1]))


@pytest.mark.parametrize("n", [1, 7, 100])  # of 100 losses, one t gets more than it remembers
def test_the_last_losses_count_however_they_are_batched(n):
    t = torch.randint(1, 4, (200,), generator=seeded(1))
    losses = torch.rand(200, generator=seeded(2), dtype=torch.float64)
    sampler, last = LossSecondMoment(3), [deque(maxlen=10) for _ in range(3)]
    for number, loss in zip(t.tolist(), losses.tolist(), strict=True):
        last[number - 1].append(loss)
    for batch in zip(t.split(n), losses.split(n), strict=True):
        sampler.update(*batch)
    root = torch.tensor(last, dtype=torch.float64).square().mean(1).sqrt()
    torch.testing.assert_close(sampler.probabilities(), 0.999 * root / root.sum() + 0.001 / 3)
    assert sampler.counts.sum() == 200


def test_t_is_drawn_as_often_as_it_should_be():
    sampler = warm()
    t = sampler.draw(200_000, seeded())
    share = torch.bincount(t, minlength=6)[1:] / len(t)
    assert (share - sampler.probabilities()).abs().max() < 0.004  # four standard errors
    assert sampler.probabilities()[-1] > 3 * sampler.probabilities()[0]
    assert torch.equal(sampler.draw(50, seeded(3)), sampler.draw(50, seeded(3)))


def test_weighted_losses_have_the_mean_of_uniform_t_and_less_variance():
    sampler = warm()
    means, p = sampler.losses.square().mean(1).sqrt(), sampler.probabilities()
    t = torch.arange(1, 6)
    weighted = sampler.weights(t) * means
    torch.testing.assert_close((p * weighted).sum(), means.mean())
    assert (p * weighted**2).sum() - means.mean() ** 2 < 0.01 * means.var()


def test_a_saved_state_goes_on_alike(tmp_path):
    whole, other = warm(history=4), LossSecondMoment(5, history=4)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for sampler in (whole, other):
        sampler.update(torch.tensor([1, 5, 5]), torch.tensor([8.0, 0.1, 0.2]))
    assert torch.equal(whole.probabilities(), other.probabilities())
    with pytest.raises(ValueError, match=r"saved losses are \(5, 4\), not \(5, 10\)"):
        LossSecondMoment(5).load_state_dict(whole.state_dict())


def test_uniform_t():
    t = uniform(100_000, 7, seeded())
    share = torch.bincount(t, minlength=8)
    assert share[0] == 0 and len(share) == 8 and (share[1:] / len(t) - 1 / 7).abs().max() < 0.005


@pytest.mark.parametrize("make, words", [
    (lambda: LossSecondMoment(0), "at least 1: 0, 10"),
    (lambda: LossSecondMoment(5, history=0), "at least 1: 5, 0"),
    (lambda: LossSecondMoment(5, uniform_share=2.0), "between 0 and 1, got 2.0"),
    (lambda: LossSecondMoment(5).update(torch.tensor([0]), torch.ones(1)), r"in 1..5, got \[0\]"),
    (lambda: LossSecondMoment(5).update(torch.tensor([6]), torch.ones(1)), r"in 1..5, got \[6\]"),
    (lambda: LossSecondMoment(5).update(torch.tensor([1, 2]), torch.ones(1)), r"t is \(2,\), but"),
])  # fmt: skip
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
