"""Weights and headers of strangers: damaged, enormous, or something else in their place."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import decoder, prior

from training.clip.recipe import ClipRecipe
from training.tasks.recipes import ClassifierRecipe, PictureRecipe, PriorRecipe
from unclip.checkpoint import CheckpointError, Saved, load_checkpoint, read_header
from unclip.config import ConfigError, parse_config
from unclip.convert.tensors import read
from unclip.guides.classifier import Classifier
from unclip.guides.noised_clip import NoisedClip
from unclip.stages import ARPrior, Decoder, Prior, load_stage
from unclip.stages import config as stage_configs

pytestmark = pytest.mark.attack
SAVED: tuple[type[Saved], ...] = (Prior, ARPrior, Decoder, Classifier, NoisedClip)


@pytest.fixture
def saved(tmp_path) -> Path:
    decoder().save(tmp_path / "decoder.safetensors", clip="name#1")
    return tmp_path / "decoder.safetensors"


def rewritten(path: Path, change=lambda header: None, tensors: dict | None = None, sums: bool = True) -> Path:
    """The file with another header, or other tensors; of itself the sums stay those that were written."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["unclip"])
    if not sums:
        del header["sums"]
    change(header)
    save_file(load_file(path) if tensors is None else tensors, path, {"unclip": json.dumps(header)})
    return path


def test_a_bit_that_flipped_is_seen(saved):
    data = bytearray(saved.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for place in (8 + length, 8 + length + 1000, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        saved.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="the decoder .*is damaged: .* is not as it was written"):
            load_stage(saved)
    saved.write_bytes(data)
    assert load_stage(saved).facts == {"clip": "name#1"}  # and no sums among what is saved again


def test_files_of_before_the_sums_still_load(saved):
    before = load_stage(saved).state_dict()
    assert "sums" not in read_header(saved)
    after = load_stage(rewritten(saved, sums=False)).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_sums_of_half_precision_are_of_what_is_stored(saved):
    decoder().save(saved, torch.bfloat16)
    assert load_stage(saved, dtype=torch.bfloat16).network.out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("made", [decoder, prior])
def test_weights_that_are_no_numbers_are_refused_by_the_stages_name(tmp_path, made, value):
    stage = made()
    next(stage.network.parameters()).data.view(-1)[-1] = value
    kind = stage.kind()
    stage.save(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"the {kind} .*a.safetensors holds weights that are no finite"):
        load_stage(tmp_path / "a.safetensors")


def test_a_standard_deviation_of_nothing_is_refused(tmp_path):
    stage = prior()
    stage.embed_std[1] = 0
    stage.save(tmp_path / "prior.safetensors")
    with pytest.raises(CheckpointError, match="standard deviation of embeddings that is not above 0"):
        load_stage(tmp_path / "prior.safetensors")


# What headers declare


@pytest.mark.parametrize(
    "place, value",
    [
        ("process.timesteps", 10**10),
        ("process.timesteps", -1),
        ("net.num_res_blocks", 100_000),
        ("net.channels", 10**9),
        ("net.channels", 0),
        ("net.channel_mult", [1] * 1000),
        ("net.channel_mult", [1e9]),
        ("net.channel_mult", [0.001]),
        ("net.channel_mult", []),
        ("net.num_heads", -1),
        ("net.head_channels", 0),
        ("net.image_size", 10**6),
        ("net.image_tokens", 10**9),
        ("net.classes", 10**12),
        ("net.dropout", 7),
        ("net.pixel_unshuffle", 0),
        ("sampling.candidates", 10**9),
        ("sampling.steps", "1" * 5000),
        ("net.attention_resolutions", list(range(100_000))),
    ],
)
def test_enormous_or_senseless_numbers_are_refused_before_anything_is_built(saved, monkeypatch, place, value):
    def change(header: dict) -> None:
        *path, last = place.split(".")
        config = header["config"]
        for key in path:
            config = config[key]
        config[last] = value

    monkeypatch.setattr(Decoder, "__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(ConfigError, match=place.split(".")[-1]) as caught:
        load_stage(rewritten(saved, change))
    assert len(str(caught.value)) < 5000


def numbers(schema: dict, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every number of a JSON schema, by its place."""
    if schema.get("type") in ("integer", "number"):
        yield place, schema
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from numbers(inner, f"{place}.{name}")
    for key in ("anyOf", "allOf", "prefixItems"):
        for inner in schema.get(key, []):
            yield from numbers(inner, place)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from numbers(schema[key], place)


@pytest.mark.parametrize("kind", SAVED, ids=lambda kind: kind.kind())
def test_every_number_of_a_configuration_has_bounds(kind):
    known = list(numbers(kind.config_class.model_json_schema()))
    assert len(known) >= 10
    for place, schema in known:
        assert schema.keys() & {"minimum", "exclusiveMinimum", "const"}, place
        assert schema.keys() & {"maximum", "exclusiveMaximum", "const"}, place


RECIPES = [PictureRecipe, PriorRecipe, ClassifierRecipe, ClipRecipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_of_a_recipe_has_bounds(recipe):
    """A batch of 10^9 pictures is refused, and not waited for. A seed may be any number."""
    known = list(numbers(recipe.model_json_schema()))
    assert len(known) >= 30
    for place, schema in known:
        if not place.endswith((".seed", ".mean", ".std")):  # statistics are looked at where a CLIP is made
            assert schema.keys() & {"minimum", "exclusiveMinimum", "const"}, place
            assert schema.keys() & {"maximum", "exclusiveMaximum", "const"}, place


def test_a_network_larger_than_its_file_is_refused_before_a_weight_is_read(saved, monkeypatch):
    """65,536 channels at every level would take terabytes."""

    def change(header: dict) -> None:
        header["config"]["net"]["channels"] = 1 << 16

    rewritten(saved, change)
    monkeypatch.setattr("unclip.checkpoint.aligned", lambda _: pytest.fail("a weight was read"))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_stage(saved)


def test_numbers_that_do_not_go_together_are_named_with_the_file(tmp_path):
    prior().save(tmp_path / "prior.safetensors")

    def change(header: dict) -> None:
        header["config"]["net"]["heads"] = 3

    with pytest.raises(CheckpointError, match="prior.safetensors describes no network that can be built: 3"):
        load_stage(rewritten(tmp_path / "prior.safetensors", change))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": 1, "kind": "decoder", "config": ' + '{"a":' * 100_000,
        '{"format": 1, "kind": ["decoder"], "config": {}}',
        '{"format": "1", "kind": "decoder", "config": {}}',
        '{"format": true, "kind": "decoder", "config": {}}',
        '{"format": 1, "kind": "decoder", "config": []}',
        '{"format": 1, "kind": "decoder", "config": {}, "sums": 3}',
        "nul",
        '"' + " " * (17 << 20) + '"',
    ],
    ids=lambda text: text[:50],
)
def test_odd_deep_and_huge_headers_are_refused_in_words(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"unclip": text})
    for load in (load_stage, load_checkpoint, read_header):
        with pytest.raises(CheckpointError, match="a.safetensors has a damaged header"):
            load(tmp_path / "a.safetensors")


def test_sums_of_other_tensors_and_odd_facts_are_refused(saved):
    with pytest.raises(CheckpointError, match="its sums are of other tensors"):
        load_stage(rewritten(saved, lambda header: header["sums"].pop("network.out.bias")))
    decoder().save(saved, clip=["a", "list"])
    with pytest.raises(CheckpointError, match="its clip is no name"):
        load_stage(saved)


def test_many_mistakes_make_a_short_message():
    with pytest.raises(ConfigError, match="and 980 more") as caught:
        parse_config(stage_configs.Process, {f"{'k' * 1000}{i}": 1 for i in range(1000)})
    assert len(str(caught.value)) < 3000


# What is no weights at all

IMPOSTORS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 7\n": "a pointer of Git LFS.*lfs pull",
    b"\n<!DOCTYPE html><html><title>Sign in</title>": "a page of the web",
    b"<html>": "a page of the web",
    b"": "it is empty",
}


@pytest.mark.parametrize("content, said", IMPOSTORS.items(), ids=IMPOSTORS.values())
@pytest.mark.parametrize("name", ["decoder.safetensors", "weights.pt"])
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for load in (read, load_stage) if name.endswith(".safetensors") else (read,):
        with pytest.raises(CheckpointError, match=f"{name} .*{said}"):
            load(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs and devices are of POSIX")
@pytest.mark.parametrize("name", ["decoder.safetensors", "weights.pt"])
def test_pipes_and_devices_are_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to("/dev/zero")
    for path, said in ((tmp_path / name, "a pipe"), (tmp_path / "link" / name, "a device")):
        for load in (read, load_stage) if name.endswith(".safetensors") else (read,):
            with pytest.raises(CheckpointError, match=f"{name} is {said}, not a file"):
                load(path)
