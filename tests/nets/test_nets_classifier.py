"""The classifier of noised pictures: what it computes. Its names and sizes: test_convert_adm.py."""

import pytest
import torch
from places import FIXTURES
from public_numbers import build, fixture
from torch import Tensor

from unclip.nets import ClassifierConfig, NoisedClassifier


def tiny() -> tuple[NoisedClassifier, dict[str, Tensor]]:
    args, weights, tensors = fixture(FIXTURES / "adm" / "classifier.safetensors")
    return build(args, weights, "classifier"), tensors


def test_every_input_has_a_say():
    net, tensors = tiny()
    x, t = tensors["inputs.x"], tensors["inputs.timesteps"]
    out = net(x, t)
    assert not torch.allclose(net(x, t + 100), out, atol=1e-3)
    assert not torch.allclose(net(x.flip(3), t), out, atol=1e-3)  # it knows places
    torch.testing.assert_close(net(x[1:], t[1:]), out[1:])


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_classes_are_read_in_four_ways(pool):
    net = NoisedClassifier(
        ClassifierConfig(
            image_size=16, channels=8, channel_mult=(1, 2), num_res_blocks=1, classes=3, pool=pool
        )
    )
    features = 56 if pool.startswith("spatial") else 16  # of all grids, or of the last
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    assert net(x, t).shape == (2, 3)
    assert net.features(x, t).shape == (2, features)


def test_pixels_may_be_folded_and_heads_must_fit():
    config = {"image_size": 16, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "classes": 3}
    net = NoisedClassifier(ClassifierConfig(pixel_unshuffle=2, **config))
    assert net(torch.randn(2, 3, 16, 16), torch.zeros(2)).shape == (2, 3)
    with pytest.raises(ValueError, match="5 attention heads do not divide 16 channels"):
        NoisedClassifier(ClassifierConfig(num_heads=5, **config, middle_attention=False))
    with pytest.raises(ValueError, match="classes"):
        ClassifierConfig(**{**config, "classes": 1})
