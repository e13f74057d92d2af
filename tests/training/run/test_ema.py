"""The average of the weights: its decay in pictures, and that it is a copy of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.run.ema import EMA
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, Process


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_after_a_half_life_of_pictures_the_old_weights_count_half(batch):
    net = Net()
    ema = EMA(net, half_life=40)
    with torch.no_grad():
        net.weight.zero_()
    for seen in range(batch, 41, batch):
        ema.update(net, batch, 10**6 + seen)
    assert torch.allclose(ema.module.weight, torch.tensor([0.5, -1.0]))


def test_one_update_is_a_weighted_mean():
    net = Net()
    ema = EMA(net, half_life=100, ramp=0.05)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([3.0, 4.0]))
    beta = 0.5 ** (16 / (0.05 * 320))  # still on the ramp: 5% of 320 pictures
    assert ema.beta(16, 320) == pytest.approx(beta)
    ema.update(net, 16, 320)
    assert torch.allclose(ema.module.weight, torch.tensor([3 - 2 * beta, 4 - 6 * beta]))


def test_the_random_start_is_soon_forgotten():
    ema, left = EMA(Net(), half_life=50_000), 1.0
    for step in range(1, 101):
        left *= ema.beta(64, 64 * step)
    assert left < 1e-6
    assert ema.beta(64, 10**9) == pytest.approx(0.5 ** (64 / 50_000))


def test_buffers_follow_and_the_copy_stands_still():
    net = Net().train()
    ema = EMA(net, half_life=10)
    net.count += 3
    ema.update(net, 1, 1000)
    assert ema.module.count == 3
    net.count += 1
    assert ema.module.count == 3
    assert not ema.module.training and not ema.module.weight.requires_grad
    assert net.training and net.weight.requires_grad


@pytest.mark.bitwise
def test_a_stages_average_runs_its_own_network():
    """The stage's denoiser calls back into the stage, which must be the copied one."""
    net = UNetConfig(image_size=8, channels=8, channel_mult=(1,), num_res_blocks=1, head_channels=8)
    stage = Decoder(DecoderStageConfig(net=net, process=Process(predicts="v")))
    ema = EMA(stage, half_life=10)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    with torch.no_grad():
        before = ema.module.denoiser(x, t).x0
        stage.network.out.bias.add_(1.0)
        assert torch.equal(ema.module.denoiser(x, t).x0, before)
        ema.module.network.out.bias.add_(1.0)
        assert torch.allclose(ema.module.denoiser(x, t).x0, stage.denoiser(x, t).x0, atol=1e-6)
        assert not torch.allclose(ema.module.denoiser(x, t).x0, before, atol=1e-3)
