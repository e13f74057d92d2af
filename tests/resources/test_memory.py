"""Memory: loading holds each stage once, bfloat16 half of it, and offloading one stage at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import public
import pytest
import torch
from torch import nn

import unclip
from unclip.checkpoint import load_strictly
from unclip.convert.tensors import read
from unclip.guides.classifier import load_classifier
from unclip.nets.unet import UNetConfig
from unclip.pipeline.pipeline import Pipeline
from unclip.resources.devices import in_precision, lent, parse_dtype, place
from unclip.resources.peak import LiveBytes
from unclip.resources.weightless import held_bytes
from unclip.stages import Decoder, DecoderStageConfig, load_stage

TABLES = 64 * 1024  # bytes; a schedule is no part of the weights
NET = {"image_size": 16, "channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "out_channels": 6}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One decoder, stored in several precisions; a few megabytes."""
    folder = tmp_path_factory.mktemp("stages")
    stage = Decoder(DecoderStageConfig(net=UNetConfig(**NET)))
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        stage.save(folder / f"{name}.safetensors", dtype)
    return {path.stem: path for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    "stored, dtype, most",
    [
        ("float32", torch.float32, 1.1),  # one tensor is there twice while it moves to aligned memory
        ("float16", torch.float32, 1.1),  # one tensor is there twice while it is cast
        ("bfloat16", torch.bfloat16, 0.52),
        ("float32", torch.bfloat16, 0.72),
    ],
)
def test_loading_never_holds_two_copies(stages, stored, dtype, most):
    full = held_bytes(load_stage(stages["float32"]))
    with LiveBytes("cpu") as live:
        stage = load_stage(stages[stored], "decoder", "cpu", dtype)
    assert live.peak <= most * full + TABLES
    assert held_bytes(stage) <= (0.52 if dtype == torch.bfloat16 else 1) * full
    assert not any(value.is_meta for value in (*stage.parameters(), *stage.buffers()))


def test_a_public_file_is_mapped_and_taken_as_it_is(tmp_path):
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    with LiveBytes("cpu") as live:
        load_strictly(empty, read(tmp_path / "a.pt"), "a.pt")
    assert live.peak <= 1.1 * held_bytes(module)
    assert all((a == b).all() for a, b in zip(module.parameters(), empty.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:.*is published under")
@pytest.mark.parametrize("dtype, most", [("float32", 1.8), ("bfloat16", 1.3)])
def test_a_public_model_is_held_once(tmp_path, monkeypatch, dtype, most):
    """But for the pages of its file, which are mapped while kernels are laid out or cast."""
    public.publish(monkeypatch, tmp_path)
    full = held_bytes(unclip.load(public.NAME, "cpu"))
    with LiveBytes("cpu") as live:
        pipeline = unclip.load(public.NAME, "cpu", dtype)
    assert live.peak <= most * full + TABLES
    assert held_bytes(pipeline) <= (1.0 if dtype == "float32" else 0.6) * full


def test_a_module_on_meta_takes_the_tensors_themselves():
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    tensors = {"weight": torch.ones(4, 3), "bias": torch.zeros(4)}
    load_strictly(empty, tensors, "a file")
    assert empty.weight.data_ptr() == tensors["weight"].data_ptr()
    full = nn.Linear(3, 4)
    load_strictly(full, tensors, "a file")
    assert full.weight.data_ptr() != tensors["weight"].data_ptr() and (full.weight == 1).all()


def test_what_is_at_half_precision():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Embedding(5, 8))
    module.register_buffer("count", torch.arange(3))
    place(module, torch.device("cpu"), torch.bfloat16)
    kinds = {name: value.dtype for name, value in module.state_dict().items()}
    assert kinds == {
        "0.weight": torch.bfloat16,
        "0.bias": torch.float32,
        "1.weight": torch.float32,
        "1.bias": torch.float32,
        "2.weight": torch.bfloat16,
        "count": torch.int64,
    }
    assert in_precision(torch.ones(2).half(), torch.bfloat16).dtype == torch.float32


def test_placing_holds_one_tensor_twice_at_most():
    module = nn.Sequential(*(nn.Linear(200, 200) for _ in range(20)))
    full = held_bytes(module)
    with LiveBytes("cpu") as live:
        place(module, torch.device("cpu"), torch.bfloat16)
    assert live.peak < 0.52 * full


def test_precisions():
    assert parse_dtype("bfloat16") is parse_dtype(torch.bfloat16) is torch.bfloat16
    with pytest.raises(ValueError, match="float32 or bfloat16, not as float16"):
        parse_dtype("float16")


def test_a_lent_module_is_back_as_it_was():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: (value.data_ptr(), value.clone()) for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"), lent([module, None], torch.device("meta")):
        assert all(value.is_meta for value in module.state_dict().values())
        raise RuntimeError("on purpose")
    for name, value in module.state_dict().items():
        assert value.data_ptr() == before[name][0] and (value == before[name][1]).all()


@pytest.fixture
def tiny(tiny_model: Path):
    return lambda **how: unclip.load(tiny_model, "cpu", **how)


def drawn(pipeline: Pipeline, **options: object) -> np.ndarray:
    return np.asarray(pipeline.generate("a cat", seed=5, **options)).astype(int)


def test_bfloat16_draws_nearly_the_same_with_half_the_memory(tiny):
    full, half = tiny(), tiny(dtype="bfloat16")
    sizes = [sum(held_bytes(part) for part in (p.prior, *p.picture_stages)) for p in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert np.abs(drawn(full) - drawn(half)).mean() < 4
    assert half.clip.identity == full.clip.identity


@pytest.mark.bitwise
def test_offloading_draws_the_same(tiny):
    wanted = drawn(tiny(), clip_guidance_scale=2.0, negative_prompt="a dog")
    kept = tiny(offload=True)
    assert (drawn(kept, clip_guidance_scale=2.0, negative_prompt="a dog") == wanted).all()


def test_with_offload_one_stage_at_a_time_is_on_the_device(tiny, monkeypatch):
    pipeline = tiny(offload=True)
    parts = {
        "clip": pipeline.clip,
        "prior": pipeline.prior,
        "decoder": pipeline.decoder,
        "upsampler": pipeline.upsamplers[0],
    }
    seen: list[set[str]] = []

    def watched(modules, device):
        seen.append({name for name, part in parts.items() if any(part is module for module in modules)})
        assert device == torch.device("cpu")
        return lent(modules, device)

    monkeypatch.setattr("unclip.pipeline.model.lent", watched)
    drawn(pipeline)
    assert seen == [{"clip"}, {"prior"}, {"decoder"}, {"upsampler"}]
    seen.clear()
    drawn(pipeline, clip_guidance_scale=1.0)
    assert seen[2] == {"decoder", "clip"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offload_leaves_a_gpu_empty_between_stages(tiny_model):
    pipeline = unclip.load(tiny_model, "cuda", offload=True)
    before = torch.cuda.memory_allocated()
    assert drawn(pipeline).shape == (64, 64, 3)
    assert torch.cuda.memory_allocated() - before < held_bytes(pipeline.decoder)
    assert pipeline.decoder.embed_mean.device.type == "cpu" and pipeline.device.type == "cuda"


def test_a_classifier_is_loaded_likewise(tmp_path):
    from unclip.guides.classifier import Classifier, ClassifierStageConfig
    from unclip.nets import ClassifierConfig

    net = ClassifierConfig(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, classes=3)
    Classifier(ClassifierStageConfig(net=net)).save(tmp_path / "classifier.safetensors")
    with LiveBytes("cpu") as live:
        classifier = load_classifier(tmp_path)
    assert live.peak <= 1.02 * held_bytes(classifier) + TABLES
