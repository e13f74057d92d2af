"""A small decoder is trained, and draws, in the latents of an autoencoder that is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from shards import encoded, noise
from tiny import randn
from tiny_models import tiny_clip
from training_programs import NET, PICTURES

import unclip
from inference.measure import likelihood
from training import embed
from training.data.embeddings import load_rows
from training.decoder import main
from training.tasks.pictures import PictureTask
from training.tasks.recipes import PictureRecipe, PriorRecipe
from unclip.checkpoint import CheckpointError
from unclip.clip import save_clip
from unclip.config import ConfigError, parse_config
from unclip.data.writing import ShardWriter
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


@pytest.fixture
def kept(held, tmp_path) -> Path:
    """Shards with latents beside them, and the CLIP's embeddings, which this stage does not take."""
    with ShardWriter(tmp_path / "data", "train", 6) as writer:
        for number in range(11):
            picture = encoded(noise(20, 16, number))
            writer.write(f"p-{number}", {"png": picture, "txt": f"word {number}".encode()})
    save_clip(tiny_clip(0), tmp_path / "clip")
    embed.main(
        [str(tmp_path / "data"), "--clip", str(tmp_path / "clip"), "--latents", str(held), "--batch", "4"]
    )
    return tmp_path / "data"


@pytest.mark.usefixtures("float32")
def test_latents_that_are_kept_are_those_that_are_made(held, kept, tmp_path, monkeypatch):
    """Within half precision; pictures are then not decoded."""
    data = {"shards": [str(kept / "*.tar")], "heldout": [str(kept / "*.tar")], "size": 16}
    kinds = {"of pictures": {}, "kept": {"embeddings": str(kept / "embeddings"), "latents": True}}
    batches, heldout = {}, {}
    for name, more in kinds.items():
        values = {
            "data": {**data, **more},
            "stage": STAGE,
            "train": {"out": "x", "pictures": 8, "batch_size": 8},
        }
        task = PictureTask(PictureRecipe.model_validate(values), Decoder.load(held), Accelerator(cpu=True))
        if name == "kept":
            monkeypatch.setattr("training.data.reader.open_picture", None)
        batches[name], heldout[name] = next(task.batches(0)), task.validation()
    one, other = batches.values()
    assert one.keys == other.keys and one.x0.shape == other.x0.shape == (8, 4, 8, 8)
    torch.testing.assert_close(one.x0, other.x0, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(heldout["of pictures"][0].x0, heldout["kept"][0].x0, atol=2e-3, rtol=2e-3)
    more = {"data": {**data, **kinds["kept"]}, "autoencoder": str(held)}
    assert main([recipe(tmp_path, **more)]) == 0
    assert unclip.load(tmp_path / "run", device="cpu").generate().size == (16, 16)
    mapped = load_rows(kept / "embeddings" / "train-000000.safetensors").latents
    assert isinstance(mapped, np.memmap) and mapped.shape == (6, 4, 8, 8)  # read a picture at a time


def test_latents_that_do_not_fit_are_refused(held, kept, tmp_path):
    data = {
        "shards": [str(kept / "*.tar")],
        "size": 16,
        "embeddings": str(kept / "embeddings"),
        "latents": True,
    }

    def refused(words: str, stage: dict = STAGE, autoencoder: Path | None = held, **more: object) -> None:
        path = recipe(
            tmp_path, data={**data, **more}, stage=stage, autoencoder=autoencoder and str(autoencoder)
        )
        with pytest.raises(ConfigError, match=words):
            main([path])

    refused("training.embed --latents makes", embeddings=None)
    refused("leave out crop and flip", crop=8, flip=0.5)
    refused("stage of pixels, which has no autoencoder", {**STAGE, "net": NET, "autoencoder": None}, None)
    large = {**STAGE, "net": {**STAGE["net"], "image_size": 16}}
    refused("holds latents of .*'shape': .4, 8, 8.*the stage is of .*16, 16", large, size=32)
    net = {**STAGE["net"], "in_channels": 9}
    refused("learns to fill holes", {**STAGE, "net": net, "inpaint": True})
    torch.manual_seed(4)
    Decoder(DecoderStageConfig.model_validate(STAGE)).save(tmp_path / "other.safetensors")
    refused("holds latents of {'autoencoder'", autoencoder=tmp_path / "other.safetensors")
    (kept / "embeddings" / "train-000001.latents.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CheckpointError, match="train-000001.safetensors is damaged"):
        load_rows(kept / "embeddings" / "train-000001.safetensors")
    embed.main([str(kept), "--clip", str(tmp_path / "clip"), "--out", str(kept / "embeddings")])
    refused("holds no latents; run training.embed again, with --latents")
    with pytest.raises(ConfigError, match="latents are for the recipe of a decoder"):
        parse_config(PriorRecipe, {"data": data}, source="it")
