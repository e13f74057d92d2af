"""Which stages make a model, which folders hold one, and which model the face keeps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from pictures import apart
from tiny_models import lone_decoder, tiny_clip

import unclip
from unclip.checkpoint import CheckpointError
from unclip.clip import save_clip
from unclip.nets.unet import UNetConfig
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder, DecoderStageConfig, LowRes, Process

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model's folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_stages_that_do_not_fit_are_refused(pipeline):
    decoder, prior, upsamplers, clip = pipeline.decoder, pipeline.prior, pipeline.upsamplers, pipeline.clip
    net = UNetConfig(
        image_size=64, in_channels=6, channels=8, channel_mult=(1,), num_res_blocks=1, head_channels=8
    )
    from_32 = Decoder(DecoderStageConfig(net=net, process=Process(predicts="v"), low_res=LowRes(size=32)))
    for wrong, said in (
        ((decoder, prior, [from_32], clip), "does not start from 16 pixels"),
        ((decoder, prior, [lone_decoder()], clip), "does not start from 16 pixels"),
        ((decoder, prior, upsamplers, None), "comes without its CLIP"),
        ((decoder, None, upsamplers, clip), "needs a prior"),
    ):
        with pytest.raises(CheckpointError, match=said):
            Pipeline(*wrong)


def test_another_clip_than_in_training_is_refused(copy):
    pipeline = Pipeline.load(copy)
    name, digest = pipeline.clip.identity.split("#")
    pipeline.prior.facts["clip"] = f"called-otherwise-then#{digest}"  # the weights count, not the name
    pipeline.save(copy)
    assert Pipeline.load(copy).clip.identity == f"{name}#{digest}"
    save_clip(tiny_clip(seed=1), copy / "clip")
    with pytest.raises(CheckpointError, match=f"trained with CLIP called-otherwise-then#{digest}, "):
        Pipeline.load(copy)


def swap(folder: Path) -> None:
    shutil.copy(folder / "prior.safetensors", folder / "decoder.safetensors")


def edit(**changes):
    def apply(folder: Path) -> None:
        path = folder / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


@pytest.mark.parametrize("spoil, said", [
    (swap, "holds a prior, not a decoder"),
    (lambda f: (f / "decoder.safetensors").unlink(), "there is no checkpoint at"),
    (lambda f: (f / "prior.safetensors").write_bytes(b"x" * 99), "not a readable safetensors file"),
    (lambda f: (f / "model.json").unlink(), "is not a model: it holds no model.json"),
    (lambda f: (f / "model.json").write_text("{"), "is damaged"),
    (lambda f: (f / "model.json").write_text("[]"), "holds no JSON object"),
    (edit(format=2), "another version"),
    (edit(decoders="x"), "decoders: unknown key"),
    (lambda f: shutil.rmtree(f / "clip"), "holds no CLIP"),
])  # fmt: skip
def test_folders_that_are_no_model(copy, spoil, said):
    spoil(copy)
    with pytest.raises(ValueError, match=re.escape(said)):
        unclip.load(copy)


def test_names_of_models(copy, monkeypatch):
    monkeypatch.setattr("unclip.models.SHIPPED", copy.parent)
    assert unclip.shipped_models() == ["copy"] == unclip.known_models()[:1]
    assert unclip.load("copy").name == "tiny"
    with pytest.raises(ValueError, match="no model 'icon'.*known models are: copy"):
        unclip.load("icon")
    with pytest.raises(ValueError, match="not a model"):
        unclip.load(copy / "clip")


def test_the_face_keeps_the_last_model(tiny_model, monkeypatch):
    count = []
    real = unclip.load
    monkeypatch.setattr(unclip, "load", lambda *args: (count.append(args), real(*args))[1])
    unclip._loaded.cache_clear()
    first = unclip.generate("a cat", model=tiny_model, steps=1)
    assert apart(first, unclip.generate("a cat", model=str(tiny_model), steps=1)) == 0 and len(count) == 1
    assert unclip.Pipeline is Pipeline
    unclip._loaded.cache_clear()
