"""Guidance in an interval of noise levels, which means the same in every schedule."""

import pytest
import torch

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import classifier_free, parse_interval
from unclip.diffusion.noise import Noise
from unclip.diffusion.samplers import SAMPLERS
from unclip.diffusion.schedule import SCHEDULES, make_schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_in_an_interval_is_guidance_there_and_none_elsewhere(name, schedule):
    """To the bit, step for step; and outside the network is asked for half as much."""
    schedule, sizes = make_schedule(schedule, 100), []

    def network(x, t, c):
        sizes.append(len(x))
        return x.sin() + c.view(-1, 1)

    model, noise = Denoiser(network, schedule, "v", "small"), lambda: Noise(range(3))
    sides = dict(c=torch.tensor([0.5, -0.3, 0.2])), dict(c=torch.zeros(3))

    def walk(scale=3.0, interval=None, steps=(100, 80, 60, 40, 20, 0)):
        denoise = classifier_free(model, *sides, scale, 0.0, schedule, interval)
        return list(SAMPLERS[name](denoise, schedule, noise()((5,)), steps, noise()))

    def same(a, b):
        return all(torch.equal(x.x, y.x) and torch.equal(x.x0, y.x0) for x, y in zip(a, b, strict=True))

    assert same(walk(interval=(0.0, 1.0)), walk())
    assert same(walk(interval=(0.0, 1e-9)), walk(1.0)) and set(sizes) == {6, 3}
    shares = {t: schedule.at(t).noise_share.item() for t in (80, 60, 40, 20)}
    assert 0 < shares[20] < shares[40] < shares[60] < shares[80] < 1
    inner = walk(interval=(shares[20], shares[60]))  # 60 and 40 are inside, 20 is not
    steps_before = 1 if name == "heun" else 2  # which looks ahead to the end of its step
    assert same(inner[:steps_before], walk(1.0)[:steps_before]) and not same(inner[:3], walk(1.0)[:3])
    sizes.clear()
    walk(interval=(shares[20], shares[60]))
    heun = [3, 3, 3, 6, 6, 6, 6, 3, 3]
    assert sizes == (heun if name == "heun" else [3, 3, 6, 6, 3])
    t, x = torch.tensor([80, 40, 20]), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    mixed = classifier_free(model, *sides, 3.0, 0.0, schedule, (shares[20], shares[60]))(x, t)
    for row, (scale, at) in enumerate([(1.0, 80), (3.0, 40), (1.0, 20)]):
        alone = classifier_free(model, *sides, scale)(x, torch.full((3,), at))
        assert torch.equal(mixed.x0[row], alone.x0[row]) and torch.equal(mixed.eps[row], alone.eps[row])


def test_a_share_of_noise_is_the_same_in_every_schedule():
    """Karras et al.'s noise level, where alpha is 1, as a share; in flow it is the time."""
    for name in SCHEDULES:
        level = make_schedule(name).at(torch.arange(1, 1001))
        sigma = level.sigma / level.alpha
        torch.testing.assert_close(level.noise_share[:-1], (sigma / (1 + sigma))[:-1])
    torch.testing.assert_close(level.noise_share, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert make_schedule("cosine").at(0).noise_share == 0


@pytest.mark.attack
@pytest.mark.parametrize("interval", ["0.2", "0.8,0.2", "0.5,0.5", "-0.1,1", "0,1.1", "a,b", "0,nan", 0.5,
                                      None, (True, 1), (0.1, 0.2, 0.3), {0.1: 0.2}])  # fmt: skip
def test_what_is_no_interval(interval):
    with pytest.raises(ValueError, match="^an interval (is two numbers|rises within)"):
        parse_interval(interval)


def test_an_interval_of_two_numbers():
    assert parse_interval("0.2, 0.8") == parse_interval([0.2, 0.8]) == (0.2, 0.8)
    with pytest.raises(ValueError, match="kept to an interval only with the schedule"):
        classifier_free(None, {}, {}, 2.0, interval=(0.2, 0.8))
