"""Random numbers: one stream a picture, and which levels a batch sees."""

import numpy as np
import pytest
import torch

from unclip.diffusion.noise import Noise, fold
from unclip.diffusion.timesteps import uniform


def test_a_pictures_noise_does_not_depend_on_its_batch():
    together, alone = Noise([5, 7, 9]), Noise([7])
    for shape in ((3, 4, 4), (2,)):
        assert torch.equal(together(shape)[1:2], alone(shape))
    assert len(together) == 3


def test_noise_is_normal_and_new_at_every_call():
    noise = Noise(range(8))
    first, second = noise((1000,)), noise((1000,))
    assert not torch.equal(first, second) and len({float(x) for x in first[:, 0]}) == 8
    assert abs(float(first.mean())) < 0.05 and abs(float(first.std()) - 1) < 0.05


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
