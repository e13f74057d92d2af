"""Stages on the disk, and the recipes that describe them."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import decoder, last, prior, randn, upsampler

from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError, parse_config
from unclip.diffusion.denoiser import PREDICTS
from unclip.diffusion.guidance import THRESHOLDS
from unclip.diffusion.losses import KINDS, WEIGHTINGS
from unclip.diffusion.noise import Noise
from unclip.stages import Decoder, Process, Sampling, load_stage


def unconditional() -> Decoder:
    return decoder(net={}, process=Process(predicts="eps"))


@pytest.mark.bitwise
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


@pytest.mark.parametrize("config, field, known", [
    (Process, "predicts", {*PREDICTS}),
    (Process, "loss", {*KINDS}),
    (Process, "weighting", {"none", *WEIGHTINGS}),
    (Sampling, "threshold", {"none", *THRESHOLDS}),
])  # fmt: skip
def test_a_recipe_may_ask_for_all_that_there_is(config, field, known):
    assert {*get_args(config.model_fields[field].annotation)} == known


@pytest.mark.parametrize("config, values, said", [
    (Process, {"schedule": "flow"}, "eps cannot be predicted with the flow schedule"),
    (Process, {"loss": "hybrid"}, "the hybrid loss needs learned variance, not 'small'"),
    (Process, {"loss": "vlb", "weighting": "p2"}, "the variational bound sets its own weights"),
    (Process, {"auxiliary_weight": -1.0}, "auxiliary_weight: "),
    (Sampling, {"steps": 0}, "steps: .* must be a positive number, sections such as .*, got 0"),
    (Sampling, {"steps": "ddim"}, "steps: .* got 'ddim'"),
    (Sampling, {"steps": "5,0"}, "steps: .* got '5,0'"),
    (Sampling, {"eta": 0.5}, r"eta is for ddim alone, not for dpm\+\+2m"),
    (Sampling, {"sampler": "ddim", "eta": 1.5}, "eta: "),
    (Sampling, {"sampler": "heun", "x0_variance": {5: 0.1}}, "x0_variance is for ddpm alone, not for heun"),
    (Sampling, {"sampler": "ddpm", "x0_variance": {5: -0.1}}, "x0_variance.5: "),
    (Sampling, {"guidance_rescale": 1.5}, "guidance_rescale: "),
    (Sampling, {"guidance_interval": (0.8, 0.2)}, "guidance_interval: .*an interval rises within 0"),
    (Sampling, {"apg": (0.0, 0.0, -0.5)}, "apg: .*its norm above 0"),
])  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(config, values, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(config, values)


def test_a_recipe_from_before_means_what_it_meant():
    old = {"sampler": "ddim", "steps": 2, "guidance_scale": 2.0, "candidates": 1}
    now = parse_config(Sampling, old)
    assert (now.threshold, now.guidance_rescale, now.eta, now.x0_variance) == ("static", 0.0, 0.0, None)
    assert now.guidance_interval is None and now.apg is None
    old = {"schedule": "cosine", "timesteps": 9, "predicts": "v", "variance": "learned", "loss": "hybrid"}
    assert parse_config(Process, old).weighting == "none"


def rewrite(path, drop: str | None = None, **header) -> None:
    """The same checkpoint with another header, or without a tensor."""
    with safe_open(path, "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys() if key != drop}
        described = json.loads(file.metadata()["unclip"])
    save_file(values, path, metadata={"unclip": json.dumps({**described, **header})})


@pytest.mark.parametrize("drop, header, error, said", [
    ("embed_mean", {}, CheckpointError, "missing: .'embed_mean'"),
    (None, {"kind": "clip"}, CheckpointError, "holds a clip, not a prior or a"),
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
