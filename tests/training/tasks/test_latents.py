"""A small decoder is trained, and draws, in the latents of an autoencoder that is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import randn
from training_programs import NET, PICTURES

import unclip
from inference.measure import likelihood
from training.decoder import main
from unclip.config import ConfigError
from unclip.guides.classifier import Classifier, ClassifierStageConfig
from unclip.stages import Decoder, DecoderStageConfig

AUTOENCODER = {"channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 8}
STAGE = {
    "net": {**NET, "image_size": 8, "in_channels": 4, "out_channels": 4},
    "process": {"predicts": "v", "schedule": "linear-latent"}, "sampling": {"steps": 2},
    "autoencoder": AUTOENCODER,
}  # fmt: skip


def recipe(folder: Path, **more: object) -> str:
    train = {"out": str(folder / "run"), "pictures": 32, "batch_size": 8, "precision": "fp32", "warmup": 0}
    values = {"data": {**PICTURES, "kind": "shards"}, "stage": STAGE, "train": train, **more}
    (folder / "recipe.yaml").write_text(json.dumps(values))  # JSON is YAML
    return str(folder / "recipe.yaml")


@pytest.fixture
def held(tmp_path) -> Path:
    """A checkpoint that holds an autoencoder, of random weights."""
    torch.manual_seed(3)
    Decoder(DecoderStageConfig.model_validate(STAGE)).save(tmp_path / "held.safetensors")
    return tmp_path / "held.safetensors"


@pytest.mark.usefixtures("float32")
def test_it_is_trained_in_latents_and_draws_pictures(held, tmp_path):
    assert main([recipe(tmp_path, autoencoder=str(held))]) == 0
    before, after = Decoder.load(held), Decoder.load(tmp_path / "run")
    assert not torch.equal(before.network.encoder[0][0].weight, after.network.encoder[0][0].weight)
    for name, value in before.autoencoder.state_dict().items():
        assert torch.equal(value, after.autoencoder.state_dict()[name]), name
    pipeline = unclip.load(tmp_path / "run", device="cpu")
    one, other = pipeline.generate(seed=1, n=2)
    assert one.size == (16, 16) and pipeline.size == 16 and one.tobytes() != other.tobytes()
    assert np.array_equal(pipeline.generate(seed=1), one)
    with pytest.raises(ValueError, match="the decoder diffuses latents"):
        likelihood.stage_of(pipeline, "decoder")
    net = {"image_size": 16, "channels": 16, "channel_mult": [1], "num_res_blocks": 1, "classes": 3}
    classifier = Classifier(ClassifierStageConfig(net=net, schedule="linear-latent"))
    with pytest.raises(ValueError, match="the classifier does not fit the decoder: it knows no latents"):
        pipeline.guide_with(classifier)
    picture = randn(1, 3, 16, 16).clamp(-1, 1)
    latents = after.to_data(picture, {})
    assert latents.shape == (1, 4, 8, 8) == (1, *after.shape)
    decoded = after.autoencoder.decode(latents).clamp(-1, 1)
    assert torch.equal(after.to_picture(latents, {}), decoded)


def test_without_the_autoencoder_or_with_another_it_does_not_begin(held, tmp_path):
    with pytest.raises(ConfigError, match="autoencoder names the decoder's checkpoint that holds them"):
        main([recipe(tmp_path)])
    other = {**STAGE, "autoencoder": {**AUTOENCODER, "num_res_blocks": 2}}
    with pytest.raises(ConfigError, match="held.safetensors holds .*'num_res_blocks': 1"):
        main([recipe(tmp_path, autoencoder=str(held), stage=other)])
    with pytest.raises(ValueError, match="in_channels 4 and out_channels 4, not 3 and 3"):
        Decoder(DecoderStageConfig.model_validate({**STAGE, "net": {**NET, "image_size": 8}}))
    net = {**STAGE["net"], "in_channels": 7}
    with pytest.raises(ValueError, match="an upsampler draws pixels"):
        Decoder(DecoderStageConfig.model_validate({**STAGE, "net": net, "low_res": {"size": 4}}))
