"""Karlo's files: as diffusers keeps them and as published, whole or not; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import karlo_models as small
import karlo_original
import pytest
import torch
from karlo_original import HEAD, TOLD, openai_clip
from safetensors.torch import load_file, save_file
from tiny import randn
from torch import Tensor

import unclip
from unclip.checkpoint import CheckpointError
from unclip.convert.karlo import pipeline as karlo

pytestmark = [pytest.mark.usefixtures("float32"), pytest.mark.filterwarnings("ignore:.*torch.jit")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A pipeline of diffusers as it saved itself; not to be written to."""
    return small.saved(tmp_path_factory.mktemp("saved"))[1]


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def as_pickles(folder: Path) -> None:
    """Weights as diffusers and transformers kept them before safetensors."""
    for path in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.name == "model.safetensors" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()


def in_pieces(folder: Path) -> None:
    """The prior's weights in two files and their index."""
    path = folder / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path.with_name(file))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("change", [as_pickles, in_pieces])
def test_other_ways_of_keeping_weights(saved, copy, change):
    wanted = karlo.from_diffusers(saved).state_dict()
    change(copy)
    made = karlo.from_diffusers(copy).state_dict()
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


# The files that Karlo's authors published.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The same weights as diffusers' pipeline and as published, with a CLIP that diffusers' has not."""
    folder = tmp_path_factory.mktemp("published")
    theirs, saved_by_diffusers = small.saved(folder, attention_head_dim=HEAD)
    karlo_original.save(folder / "files", theirs, openai_clip(), program=True)
    return saved_by_diffusers, folder / "files"


def test_the_published_files(published):
    theirs, ours = karlo.from_diffusers(published[0]), karlo.from_original(published[1], TOLD)
    for part in ("prior", "decoder"):
        same_stage(getattr(ours, part), getattr(theirs, part))
    same_stage(ours.upsamplers[0], theirs.upsamplers[0])
    assert (ours.prior.config.clamp, theirs.prior.config.clamp) == (10.0, 5.0)
    assert ours.clip.image_size == 16 and ours.clip.encode_image(randn(1, 3, 20, 20)).shape == (1, small.DIM)
    tensors, held = openai_clip(), ours.clip.towers.model.state_dict()
    assert ours.clip.towers.model.config.quick_gelu
    assert all(torch.equal(value, tensors[name]) for name, value in held.items())
    assert ours.generate("a red cat", prior_steps=2, steps=2, upsampler_steps=2).size == (32, 32)


def same_stage(a, b) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    left_out = {"head_channels", "dropout"}  # of a network without attention; of training
    ours, theirs = (stage.config.net.model_dump(exclude=left_out) for stage in (a, b))
    assert ours == theirs and a.config.process == b.config.process
    assert a.config.sampling == b.config.sampling
    assert getattr(a.config, "low_res", None) == getattr(b.config, "low_res", None)


@pytest.mark.bitwise
def test_saved_as_ours_the_published_files_are_the_same(published, tmp_path):
    first = karlo.from_original(published[1], TOLD)
    second = unclip.load(first.save(tmp_path / "a"), device="cpu")
    few = {"prior_steps": 2, "steps": 2, "upsampler_steps": 2}
    assert first.generate("a red cat", **few).tobytes() == second.generate("a red cat", **few).tobytes()
    second.save(tmp_path / "b")
    for file in (path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_published_files_that_are_refused(published, tmp_path):
    copy = Path(shutil.copytree(published[1], tmp_path / "copy"))
    decoder = copy / "decoder-ckpt-step=01000000-of-01000000.ckpt"
    tensors = torch.load(decoder, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**tensors, "model.more": torch.zeros(1), "other": torch.zeros(1)}}, decoder)
    with pytest.raises(CheckpointError, match=r"decoder-ckpt.*\n.*\n.*unexpected: .*model.more.*other"):
        karlo.from_original(copy, TOLD)
    torch.save({"state_dict": {"model.more": torch.zeros(1)}}, decoder)
    with pytest.raises(CheckpointError, match="does not hold Karlo's networks"):
        karlo.from_original(copy, TOLD)
    (copy / "decoder-ckpt-2.ckpt").touch()
    with pytest.raises(CheckpointError, match="several files of one kind"):
        karlo.from_original(copy, TOLD)
    (copy / "ViT-L-14_stats.th").unlink()
    with pytest.raises(CheckpointError, match="lacks ViT-L-14_stats.th"):
        karlo.from_original(copy, TOLD)


@pytest.mark.parametrize(
    "name, content",
    [("ViT-L-14.pt", b"PK cut short"), ("ViT-L-14_stats.th", b"PK cut short"), ("ViT-L-14_stats.th", None)],
)
def test_a_damaged_published_file_is_named(published, tmp_path, name, content):
    copy = Path(shutil.copytree(published[1], tmp_path / "copy"))
    if content is None:  # what would run code if it were opened as a pickle of any kind
        torch.save((Path("mean"), Path("std")), copy / name)
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        karlo.from_original(copy, TOLD)


# What is refused.


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_what_does_not_fit_is_told_at_once(copy):
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["more.weight"] = torch.zeros(1)
        del tensors["conv_in.bias"]
        tensors["conv_out.bias"] = torch.zeros(5)
        del tensors["mid_block.attentions.0.to_k.weight"]

    rewrite(copy / "decoder" / "diffusion_pytorch_model.safetensors", spoil)
    with pytest.raises(CheckpointError) as error:
        karlo.from_diffusers(copy)
    for told in ("decoder", "more.weight", "encoder.0.0.bias", "(5,) for (6,)", "middle.1.qkv.weight"):
        assert told in str(error.value)


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "part, values, told",
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline"},
            "StableDiffusionPipeline, not a UnCLIP",
        ),
        ("prior/config.json", {"norm_in_type": "layer"}, "prior .*norm_in_type 'layer'"),
        (
            "decoder/config.json",
            {"class_embed_type": None, "act_fn": "mish"},
            "act_fn 'mish', class_embed_type None",
        ),
        ("decoder/config.json", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "UpBlock2D"),
        ("decoder/config.json", {"attention_head_dim": [8, 16]}, "must be one number each"),
        ("super_res_last/config.json", {"layers_per_block": 2}, "differ in layers_per_block"),
        ("prior_scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ("decoder_scheduler/scheduler_config.json", {"clip_sample_range": 2.0}, "another range"),
        (
            "text_proj/config.json",
            {"cross_attention_dim": 8},
            "a context of 24 channels, and text_proj makes 8",
        ),
    ],
)
def test_other_kinds_are_refused(copy, part, values, told):
    change_json(copy / part, **values)
    with pytest.raises(CheckpointError, match=told):
        karlo.from_diffusers(copy)


@pytest.mark.parametrize(
    "part",
    ["prior/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "decoder/config.json"],
)
def test_what_is_cut_short_is_named(copy, part):
    whole = (copy / part).read_bytes()
    (copy / part).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=part.partition("/")[0]):
        karlo.from_diffusers(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(CheckpointError, match="model_index.json"):
        karlo.from_diffusers(tmp_path)
    (copy / "prior" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="prior holds no weights"):
        karlo.from_diffusers(copy)
    shutil.rmtree(copy / "super_res_last")
    with pytest.raises(CheckpointError, match="lacks the folders super_res_last"):
        karlo.from_diffusers(copy)


def test_a_text_encoder_without_all_its_weights_is_refused(copy):
    weights = copy / "text_encoder" / "model.safetensors"
    rewrite(weights, lambda tensors: tensors.pop("text_projection.weight"))
    with pytest.raises(CheckpointError, match="text_projection.weight"):
        karlo.from_diffusers(copy)


def test_a_text_encoder_of_another_size_is_refused(copy):
    tokens = small.tokenizer(copy.parent / "words")
    small.text_encoder(tokens, hidden_size=8, projection_dim=8).save_pretrained(copy / "text_encoder")
    with pytest.raises(CheckpointError, match="embeddings of 8, and 12 tokens of 8; the prior takes 16"):
        karlo.from_diffusers(copy)
