"""Stages: what a network is told, what it is not told in training, and what comes out of it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError
from unclip.diffusion import SAMPLERS, Noise
from unclip.nets.prior import PriorConfig
from unclip.nets.unet import UNetConfig
from unclip.stages import (
    Decoder,
    DecoderStageConfig,
    LowRes,
    Prior,
    PriorStageConfig,
    Process,
    Sampling,
    Stage,
    blur3,
    load_stage,
)

DIM = 6
NET = {"image_size": 8, "channels": 16, "channel_mult": (1,), "num_res_blocks": 1, "head_channels": 8}
INPUTS = {"image_embed_dim": DIM, "text_dim": 5, "context_channels": 8, "classes": 3}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def awake(stage: Stage) -> Stage:
    """Networks start with zeros at their ends; here every output shall depend on every input."""
    g = seeded(1)
    for weight in stage.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=g)
    if len(stage.embed_mean):
        stage.set_statistics(randn(DIM, seed=2) * 0.1, randn(DIM, seed=3).abs() + 0.2)
    return stage.eval().requires_grad_(False)


def decoder(*, net: dict | None = None, process: Process | None = None, **config) -> Decoder:
    """A tiny decoder; unless told otherwise it takes everything, and learns its variance."""
    process = process or Process(predicts="v", variance="learned", loss="hybrid")
    out = 6 if process.variance == "learned" else 3
    net = UNetConfig(**{**NET, "out_channels": out, **(INPUTS if net is None else net)})
    return awake(Decoder(DecoderStageConfig(net=net, process=process, **config)))


def upsampler(size: int = 64, low: int = 16, **low_res) -> Decoder:
    net = {"image_size": size, "in_channels": 6, "pixel_unshuffle": 4, "middle_attention": False}
    return decoder(net=net, process=Process(predicts="v"), sampling=Sampling(steps=2),
                   low_res=LowRes(size=low, **low_res))


def prior(**config) -> Prior:
    net = PriorConfig(embed_dim=DIM, text_dim=5, text_length=7, width=16, layers=1, heads=2)
    return awake(Prior(PriorStageConfig(net=net, sampling=Sampling(steps=3, guidance_scale=2.0), **config)))


def unit(n: int, seed: int = 4) -> torch.Tensor:
    return F.normalize(randn(n, DIM, seed=seed), dim=-1)


def text(n: int, length: int = 4) -> dict[str, torch.Tensor]:
    return {"text": randn(n, length, 5, seed=5), "text_mask": torch.arange(length) < torch.tensor([[2], [4]] * n)[:n]}


def everything(stage: Decoder, n: int = 2) -> dict[str, torch.Tensor]:
    return stage.conditions(n, image_embed=unit(n), **text(n), classes=torch.arange(n) % 3)


def last(steps):
    *_, step = steps
    return step


@pytest.mark.parametrize("make", [prior, decoder])
def test_whitening_and_back(make):
    stage, embed = make(), unit(50)
    assert torch.allclose(stage.unwhiten(stage.whiten(embed)), embed, atol=1e-6)
    stage.set_statistics(embed.mean(0), embed.std(0))
    white = stage.whiten(embed)
    assert torch.allclose(white.mean(0), torch.zeros(DIM), atol=1e-5)
    assert torch.allclose(white.std(0), torch.ones(DIM), atol=1e-5)
    assert torch.allclose(stage.unwhiten(3 * white).norm(dim=-1), torch.ones(50))


def test_a_coordinate_that_never_varies_is_no_division_by_zero():
    stage, embed = prior(), unit(9)
    embed[:, 0] = 0.5
    stage.set_statistics(embed.mean(0), embed.std(0))
    assert stage.whiten(embed).isfinite().all()


def test_conditions_say_what_is_given():
    stage = decoder()
    given, nothing = everything(stage), stage.conditions(2)
    assert torch.equal(given["image_embed"], stage.whiten(unit(2))) and given["has_image"].all()
    assert not nothing["has_image"].any() and not nothing["text_mask"].any()
    assert (nothing["classes"] == -1).all()
    assert decoder(net={}).conditions(2) == {}
    with pytest.raises(ValueError, match="low-resolution"):
        upsampler().conditions(2)
    with pytest.raises(ValueError, match="takes 7 text tokens, not 8"):
        prior().conditions(unit(1), randn(1, 8, 5), torch.ones(1, 8, dtype=torch.bool))


def test_null_is_the_same_as_giving_nothing():
    stage, x, t = decoder(), randn(2, 3, 8, 8), torch.tensor([10, 900])
    null, nothing = stage.null(everything(stage)), stage.conditions(2)
    made = stage.denoiser(x, t, **null).x0
    assert torch.allclose(made, stage.denoiser(x, t, **nothing).x0, atol=1e-5)
    assert not torch.allclose(made, stage.denoiser(x, t, **everything(stage)).x0, atol=1e-2)


def test_null_leaves_the_low_resolution_picture():
    net = {"in_channels": 6, "image_size": 16, **INPUTS}
    stage = decoder(net=net, process=Process(predicts="v"), low_res=LowRes(size=8))
    given = stage.conditions(2, image_embed=unit(2), low_res=randn(2, 3, 8, 8).clamp(-1, 1))
    null = stage.null(given)
    assert torch.equal(null["base"], given["base"]) and null["base"].any()
    assert not null["has_image"].any()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_drop_rates(rate):
    n = 20_000
    stage = decoder(drop_image=rate, drop_text=rate, drop_class=rate)
    given = {"image_embed": torch.zeros(n, DIM), "has_image": torch.ones(n, dtype=torch.bool),
             "text": torch.zeros(n, 1, 5), "text_mask": torch.ones(n, 1, dtype=torch.bool),
             "classes": torch.ones(n, dtype=torch.int64)}
    kept = stage.drop(given, seeded(0))
    dropped = torch.stack([~kept["has_image"], ~kept["text_mask"][:, 0], kept["classes"] == -1]).float()
    assert torch.allclose(dropped.mean(1), torch.full((3,), rate), atol=4 * (rate * (1 - rate) / n) ** 0.5)
    if 0 < rate < 1:  # each on its own chance
        assert dropped.corrcoef().fill_diagonal_(0).abs().max() < 4 / n**0.5
    again, other = stage.drop(given, seeded(0)), stage.drop(given, seeded(1))
    assert all(torch.equal(kept[key], again[key]) for key in given)
    assert torch.equal(kept["has_image"], other["has_image"]) == (rate in (0.0, 1.0))
    assert given["has_image"].all() and given["text_mask"].all()  # not in place
    p = prior(drop_text=rate)
    told = p.conditions(torch.zeros(n, DIM), torch.zeros(n, 1, 5), torch.ones(n, 1, dtype=torch.bool))
    share = 1 - p.drop(told, seeded(0))["has_text"].float().mean()
    assert abs(share - rate) <= 4 * (rate * (1 - rate) / n) ** 0.5


def test_noise_on_the_embedding_is_for_training_only():
    stage = decoder(embed_noise=0.5)
    given = everything(stage)
    noise = (stage.drop(given, seeded(0))["image_embed"] - given["image_embed"]) / 0.5
    assert 0.5 < noise.std() < 1.7
    quiet = decoder(embed_noise=0.0)
    assert torch.equal(quiet.drop(given, seeded(0))["image_embed"], given["image_embed"])


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
    low = randn(4, 3, 16, 16).clamp(-1, 1)
    stage = upsampler(blur=0.6, noise=0.2)
    first, again, other = (stage.corrupt(low, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, low)
    assert first.abs().max() <= 1
    assert torch.equal(upsampler(blur=0, noise=0).corrupt(low, seeded(0)), low)


@pytest.mark.parametrize("change, said", [
    ({"in_channels": 6}, "in_channels 3 and out_channels 6, not 6 and 6"),
    ({"out_channels": 3}, "not 3 and 3"),
])  # fmt: skip
def test_wrong_channels_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        decoder(net=change)


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_objective_is_climbed_with_every_sampler(sampler):
    stage = decoder(sampling=Sampling(sampler=sampler, steps=6, guidance_scale=1.5))
    told = everything(stage)

    def redness(picture):
        return (picture[:, 0] - picture[:, 1:].mean(1)).mean((1, 2))

    def drawn(objective):
        return redness(stage.to_picture(last(stage.sample(told, Noise([0, 1]), objective=objective)).x, told))

    plain, red, less = drawn(None), drawn(lambda p: 50 * redness(p)), drawn(lambda p: -50 * redness(p))
    assert (red > plain + 0.05).all() and (less < plain - 0.05).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(sampler):
    stage = decoder(sampling=Sampling(sampler=sampler, steps=3, guidance_scale=2.0))
    told = everything(stage)
    both = last(stage.sample(told, Noise([7, 8]))).x
    alone = last(stage.sample({key: value[1:] for key, value in told.items()}, Noise([8]))).x
    assert torch.allclose(both[1:], alone, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_prior_makes_unit_embeddings_that_heed_text_and_null():
    stage = prior()
    told = stage.conditions(unit(3), randn(3, 4, 5), torch.ones(3, 4, dtype=torch.bool))
    made = stage.sample(told, Noise([0, 1, 2]))
    assert made.shape == (3, DIM) and torch.allclose(made.norm(dim=-1), torch.ones(3))
    assert torch.equal(made, stage.sample(told, Noise([0, 1, 2])))
    away = stage.conditions(unit(3, seed=9), randn(3, 4, 5, seed=9), torch.ones(3, 4, dtype=torch.bool))
    for other in (stage.sample(away, Noise([0, 1, 2])), stage.sample(told, Noise([0, 1, 2]), null=away)):
        assert not torch.allclose(made, other, atol=1e-2)


def unconditional() -> Decoder:
    return decoder(net={}, process=Process(predicts="eps"))


@pytest.mark.parametrize("make", [prior, decoder, unconditional, upsampler])
def test_saved_stages_are_the_same_when_loaded(make, tmp_path):
    stage, path = make(), tmp_path / "stage.safetensors"
    stage.facts = {"clip": "some clip#123"}
    stage.save(path, pictures_seen=5)
    loaded = load_stage(path, stage.config.kind)
    assert loaded.config == stage.config and type(loaded) is type(stage)
    assert loaded.facts == {"clip": "some clip#123", "pictures_seen": 5}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    state = stage.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    if isinstance(stage, Decoder):
        told = stage.conditions(1, low_res=randn(1, 3, 16, 16) if stage.config.low_res else None)
        first, second = (last(s.sample(told, Noise([0]), Sampling(steps=2))).x for s in (stage, loaded))
        assert torch.equal(first, second)
    stage.save(path, torch.float16)
    half = load_stage(path).state_dict()
    assert all(torch.equal(half[key], value.half().float()) for key, value in state.items())


def rewrite(path, drop: str | None = None, **header) -> None:
    """The same checkpoint with another header, or without a tensor."""
    with safe_open(path, "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys() if key != drop}
        described = json.loads(file.metadata()["unclip"])
    save_file(values, path, metadata={"unclip": json.dumps({**described, **header})})


@pytest.mark.parametrize("drop, header, error, said", [
    ("embed_mean", {}, CheckpointError, "missing: .'embed_mean'"),
    (None, {"kind": "clip"}, CheckpointError, "holds a clip, not a prior or a decoder"),
    (None, {"format": 99}, CheckpointError, "format 99"),
    (None, {"config": {}}, ConfigError, "net: "),
])  # fmt: skip
def test_checkpoints_that_do_not_fit(tmp_path, drop, header, error, said):
    path = tmp_path / "stage.safetensors"
    unconditional().save(path)
    rewrite(path, drop, **header)
    with pytest.raises(error, match=said):
        load_stage(path)


def test_another_kind_is_refused(tmp_path):
    prior().save(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="holds a prior, not a decoder"):
        load_stage(tmp_path / "a.safetensors", "decoder")
