"""Random numbers: one stream a picture, and which levels a batch sees."""

import numpy as np
import pytest
import torch

from unclip.diffusion.noise import Begun, Counted, Noise, fold, philox
from unclip.diffusion.timesteps import uniform


@pytest.mark.parametrize("kind", [Noise, Counted])
def test_a_pictures_noise_does_not_depend_on_its_batch(kind):
    together, alone = kind([5, 7, 9]), kind([7])
    for shape in ((3, 4, 4), (2,), ()):
        assert torch.equal(together(shape)[1:2], alone(shape))
        assert torch.equal(together.uniform(shape)[1:2], alone.uniform(shape))
    assert len(together) == 3 and together((3, 4, 4)).shape == (3, 3, 4, 4)


@pytest.mark.parametrize("kind", [Noise, Counted])
def test_noise_is_normal_and_new_at_every_call(kind):
    noise = kind(range(8))
    first, second = noise((1000,)), noise((1000,))
    assert not torch.equal(first, second) and len({float(x) for x in first[:, 0]}) == 8
    assert abs(float(first.mean())) < 0.05 and abs(float(first.std()) - 1) < 0.05


def test_counted_numbers_have_the_moments_of_their_law():
    noise = Counted(range(16))
    normal, even = noise((3, 100, 100)).double(), noise.uniform((3, 100, 100)).double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        assert abs((normal**power).mean() - moment) < 0.02 * 3**power  # of half a million
    assert abs(torch.corrcoef(normal.flatten(1)) - torch.eye(16)).max() < 0.03
    for shift in (1, 7500, 15000):  # a pair's two numbers lie half a draw apart
        assert abs((normal.flatten(1) * normal.flatten(1).roll(shift, 1)).mean()) < 0.01
    assert even.min() >= 0 and even.max() < 1 and abs(even.mean() - 0.5) < 0.003
    assert abs(even.var() - 1 / 12) < 0.001


def test_a_counted_draw_is_of_its_number_under_the_key_of_the_seed():
    """Every seed is mixed first, so that the streams of 0, 1, 2, ... have nothing in common."""
    key, noise = fold(7), Counted([7])
    noise.uniform((5,))
    counter = torch.tensor([[0, 1], [1, 1], [0, 0], [0, 0]])  # places 0 and 1 of draw number 1
    words = philox(counter, torch.tensor([[key & 0xFFFFFFFF], [key >> 32]])).flatten()
    assert torch.equal(noise.uniform((7,))[0], (words >> 8)[:7].float() / 2**24)


def test_noise_that_is_begun_goes_on_as_its_streams_would():
    given, plain = torch.ones(2, 3), Noise([5, 7])
    begun = Begun(given, [5, 7])
    plain((3,))
    assert torch.equal(begun((3,)), given) and torch.equal(begun((3,)), plain((3,)))


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ("00000000" * 4, "00000000" * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff" * 4, "ffffffff" * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a8885a308d313198a2e03707344", "a4093822299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    """Those that come with the paper's own code."""

    def column(text):
        text = text.replace(" ", "")
        return torch.tensor([int(text[i : i + 8], 16) for i in range(0, len(text), 8)])[:, None]

    assert torch.equal(philox(column(counter), column(key)), column(words))


def test_fold_is_stable_and_tells_its_numbers_apart():
    assert fold(0) == 4761921975702974394
    assert fold(3, 1, 4) == fold(np.int64(3), 1, 4)
    mixed = {fold(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(mixed) == 1000 and all(0 <= x < 2**63 for x in mixed)
    assert fold(1, 11) != fold(11, 1) != fold(111)
    assert torch.equal(Noise([-1])((2,)), Noise([-1])((2,))) and len(Noise([2**70])) == 1


@pytest.mark.parametrize("seed", ["7", 1.5, None])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError):
        Noise([seed])


def test_uniform_reaches_every_level():
    t = uniform(2000, 20, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and t.shape == (2000,)
    counts = torch.bincount(t, minlength=21)
    assert counts[0] == 0 and (counts[1:] > 50).all() and len(counts) == 21
    assert torch.equal(t, uniform(2000, 20, torch.Generator().manual_seed(0)))
