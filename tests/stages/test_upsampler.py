"""Stages that enlarge: the smaller picture, how it is spoilt in training, and what is diffused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import INPUTS, decoder, last, randn, seeded, unit, upsampler

from unclip.checkpoint import save_checkpoint
from unclip.config import ConfigError, parse_config
from unclip.degradation.bsr import bsr
from unclip.diffusion.noise import Noise
from unclip.stages import LowRes, Process, blur3, load_stage


@pytest.mark.parametrize("scale", [None, 0.3])
def test_data_and_picture_are_inverse(scale):
    stage = upsampler(residual_scale=scale)
    picture, low = randn(2, 3, 64, 64).clamp(-1, 1), randn(2, 3, 16, 16, seed=1).clamp(-1, 1)
    told = stage.conditions(2, low_res=low)
    assert told["base"].shape == picture.shape
    data = stage.to_data(picture, told)
    assert torch.equal(data, picture) == (scale is None)
    assert torch.allclose(stage.to_picture(data, told), picture, atol=1e-6)
    assert stage.to_picture(data + 9, told).max() == 1


def test_null_leaves_the_low_resolution_picture():
    net = {"in_channels": 6, "image_size": 16, **INPUTS}
    stage = decoder(net=net, process=Process(predicts="v"), low_res=LowRes(size=8))
    given = stage.conditions(2, image_embed=unit(2), low_res=randn(2, 3, 8, 8).clamp(-1, 1))
    null = stage.null(given)
    assert torch.equal(null["base"], given["base"]) and null["base"].any()
    assert not null["has_image"].any()


def test_base_is_bilinear():
    low = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    base = upsampler(8, 2).enlarge(low)[0, 0, 0]
    assert torch.allclose(base, torch.tensor([-1.0, -1, -0.75, -0.25, 0.25, 0.75, 1, 1]))


def test_blur_against_a_dense_kernel():
    picture, sigma = randn(3, 3, 7, 9), torch.tensor([0.3, 0.6, 2.0])
    distance = torch.tensor([1.0, 0.0, 1.0])
    for one, s in zip(picture.split(1), sigma, strict=True):
        kernel = torch.exp(-(distance[:, None] + distance) / (2 * s**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 3, 3)
        dense = F.conv2d(F.pad(one, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        assert torch.allclose(blur3(one, s.view(1, 1, 1, 1)), dense, atol=1e-6)
    assert torch.equal(blur3(picture, torch.zeros(3, 1, 1, 1)), picture)
    assert torch.allclose(blur3(torch.full((3, 3, 4, 4), 0.7), sigma.view(3, 1, 1, 1)), torch.tensor(0.7))


def test_corruption_is_seeded_and_bounded():
    whole = randn(4, 3, 64, 64).clamp(-1, 1)
    low = F.avg_pool2d(whole, 4)
    stage = upsampler(blur=0.6, noise=0.2)
    first, again, other = (stage.corrupt(whole, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, low)
    assert first.abs().max() <= 1
    torch.testing.assert_close(upsampler(blur=0, noise=0).corrupt(whole, seeded(0)), low)


def test_wrong_upsamplers_are_refused():
    with pytest.raises(ValueError, match="in_channels 6 and out_channels 3, not 3 and 3"):
        decoder(net={}, process=Process(predicts="v"), low_res=LowRes(size=4))
    with pytest.raises(ValueError, match="64 pixels are no whole multiple of low_res.size 24"):
        upsampler(64, 24)


def test_an_upsampler_runs_on_crops():
    stage = upsampler(residual_scale=0.3)
    told = stage.conditions(2, low_res=randn(2, 3, 8, 8).clamp(-1, 1))
    picture = randn(2, 3, 32, 32, seed=1).clamp(-1, 1)
    terms = stage(stage.to_data(picture, told), torch.tensor([3, 800]), randn(2, 3, 32, 32), told)
    assert terms["loss"].shape == (2,) and terms["loss"].isfinite().all()
    step = last(stage.sample(told, Noise([0, 1])))
    assert step.x.shape == (2, 3, 32, 32)
    assert stage.to_picture(step.x, told).abs().max() <= 1


def test_a_stage_spoils_as_its_configuration_says_and_its_file_says_so_too(tmp_path):
    stage, whole = upsampler(degradation="bsr"), randn(2, 3, 64, 64).clamp(-1, 1)
    spoilt = stage.corrupt(whole, Noise([3, 4]))
    assert torch.equal(spoilt, bsr(whole, 4, Noise([3, 4])))
    stage.save(tmp_path / "a.safetensors")
    again = load_stage(tmp_path / "a.safetensors")
    assert again.config.low_res.degradation == "bsr" and torch.equal(
        again.corrupt(whole, Noise([3, 4])), spoilt
    )


def test_a_file_that_says_nothing_of_its_degradation_has_the_blur(tmp_path):
    """As those of earlier versions are."""
    stage = upsampler(blur=0.3)
    config = stage.config.model_dump(mode="json")
    del config["low_res"]["degradation"]
    save_checkpoint(tmp_path / "a.safetensors", stage.state_dict(), kind="decoder", config=config)
    assert load_stage(tmp_path / "a.safetensors").config == stage.config


@pytest.mark.attack
@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"size": 16, "degradation": "jpeg"}, "'blur' or 'bsr'"),
        ({"size": 8, "degradation": "bsr"}, "bsr is of pictures of at least 16 pixels, not 8"),
        (
            {"size": 16, "degradation": "bsr", "noise": 0.1},
            "a blur and a noise of its own: leave out blur and noise",
        ),
        (
            {"size": 16, "degradation": "bsr", "blur": 0.3},
            "a blur and a noise of its own: leave out blur and noise",
        ),
    ],
)
def test_degradations_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(LowRes, wrong)
