"""A CLIP that was downloaded reaches no network, asks for no absurd network, and is whole, or is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from clips import of_transformers
from safetensors.torch import load_file, save_file
from tiny_models import CLIP, tiny_clip

from unclip.checkpoint import CheckpointError
from unclip.clip import CONFIG, WEIGHTS, build_clip, load_clip, same_weights, save_clip
from unclip.config import ConfigError
from unclip.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.attack


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks for a host fails the test, even where the failure is caught."""
    asked = []

    def ask(host, *_, **__):
        asked.append(host)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr("time.sleep", lambda _: None)  # libraries try again, each time later
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: ask(address))
    yield asked
    assert not asked


@pytest.fixture
def folder(tmp_path) -> Path:
    save_clip(tiny_clip(), tmp_path / "clip")
    return tmp_path / "clip"


def describe(folder: Path, **changes) -> Path:
    """Change keys of a folder's description; tower__key reaches inside, None takes a key away."""
    described = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        *parts, key = name.split("__")
        place = described
        for part in parts:
            place = place[part]
        if value is None:
            del place[key]
        else:
            place[key] = value
    (folder / CONFIG).write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    "key, value",
    [
        ("vision_cfg__timm_model_name", "hf-hub:someone/something"),
        ("vision_cfg__timm_model_name", "hf_hub:someone/something"),
        ("vision_cfg__timm_model_name", "local-dir:/etc"),
        ("vision_cfg__timm_model_name", "someone/something"),
        ("text_cfg__hf_model_name", "someone/something"),
        ("text_cfg__hf_tokenizer_name", "someone/something"),
    ],
)
def test_a_folder_fetches_nothing_unasked(key, value, folder, no_network):
    describe(folder, **{f"model_cfg__{key}": value})
    with pytest.raises(ConfigError, match=f"{key.replace('__', '.')}: {value}.*--allow-downloads"):
        load_clip(folder)
    with pytest.raises(ConfigError, match="--allow-downloads"):
        build_clip(json.loads((folder / CONFIG).read_text())["model_cfg"])
    with pytest.raises(ValueError) as error:  # allowed, it tries
        load_clip(folder, downloads=True)
    assert "--allow-downloads" not in str(error.value)
    no_network.clear()


def test_weights_that_timm_publishes_are_not_fetched(folder):
    """They would be thrown away: a folder has its own."""
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": True}
    clip = build_clip({**CLIP, "vision_cfg": vision})
    save_clip(clip, folder)
    again = load_clip(folder)
    picture = torch.rand(2, 3, 40, 40)
    assert (clip.encode_image(picture) - again.encode_image(picture)).abs().max() < 0.01
    assert json.loads((folder / CONFIG).read_text())["model_cfg"]["vision_cfg"] == vision


@pytest.mark.parametrize("kwargs", [{"reduction_mask": "syntax"}, {"bpe_path": "/dev/zero"}])
def test_a_folder_chooses_no_files_and_tools_of_a_tokenizer(kwargs, folder):
    with pytest.raises(ConfigError, match="only `clean` is known"):
        load_clip(describe(folder, model_cfg__text_cfg__tokenizer_kwargs=kwargs))


def test_a_model_names_a_folder_of_its_own_whatever_that_is_called(tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    manifest = json.loads(Path("model.json").read_text())
    for name in ("transformers:someone/something", "open_clip:hf-hub:someone/something"):
        Path("model.json").write_text(json.dumps({**manifest, "clip": name}))
        with pytest.raises(ConfigError, match="a model holds its parts itself"):
            Pipeline.load(".")


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels"},
        {"_name_or_path": "someone/something", "transformers_weights": "../other.safetensors"},
    ],
)
def test_a_folder_of_transformers_names_nothing_but_shapes(change, tmp_path):
    clip = of_transformers(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (tmp_path / "theirs" / "code.py").write_text("open('ran', 'w')")
    again = load_clip(tmp_path / "theirs")
    assert same_weights(clip.identity, again.identity) and not (tmp_path / "theirs" / "ran").exists()


# What the command line names


@pytest.mark.parametrize(
    "source, said",
    [
        ("open_clip:RN50", "names no weights; write open_clip:RN50@TAG .*openai, .*or open_clip:RN50@FILE"),
        ("open_clip:RN50@", "names no weights"),
        ("open_clip:RN50@openia", "no file and no tag 'openia'; write .*openai"),
        ("open_clip:RN50@/nowhere.pt", "no file and no tag '/nowhere.pt'"),
        ("open_clip:ViT-B-23@openai", "knows no model 'ViT-B-23'"),
        ("open_clip:local-dir:/tmp@x", "knows no model 'local-dir:/tmp'"),
        ("transformers:/nowhere/at/all", "cannot be read as a CLIP"),
        ("nowhere/at/all", "holds no CLIP"),
    ],
)
def test_a_name_that_means_nothing_is_said_in_one_line(source, said):
    with pytest.raises(ValueError, match=said) as error:
        load_clip(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 6_000


@pytest.mark.parametrize(
    "source",
    ["open_clip:ViT-B-32@laion2b_s34b_b79k", "open_clip:hf-hub:someone/something", "transformers:someone/a"],
)
def test_without_a_network_it_is_said_in_one_line(source, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=re.escape(source.partition(":")[2])) as error:
        load_clip(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    no_network.clear()


# What no CLIP can be


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_cfg__text_cfg__width": 10**6}, "text_cfg.width: .*less than or equal"),
        ({"model_cfg__vision_cfg__layers": 100_000}, "vision_cfg.layers"),
        ({"model_cfg__text_cfg__heads": -1}, "text_cfg.heads: .*greater than 0"),
        ({"model_cfg__text_cfg__heads": 3}, "16 channels do not divide into 3 heads"),
        ({"model_cfg__vision_cfg__head_width": 0}, "vision_cfg.head_width: .*greater than 0"),
        ({"model_cfg__vision_cfg__patch_size": 32}, "smaller than a patch"),
        ({"model_cfg__embed_dim": 10**12}, "its model_cfg.embed_dim is 1000000000000"),
        ({"model_cfg__embed_dim": "many"}, "embed_dim: .*valid integer"),
        ({"model_cfg__text_cfg__vocab_size": 2**22}, "does not fit the network"),
        ({"model_cfg__text_cfg__ls_init_value": 1e30}, "text_cfg.ls_init_value is 1e"),
        ({"model_cfg__text_cfg": []}, "text_cfg"),
        ({"model_cfg": None}, "model_cfg|ClipConfig"),
        ({"model_cfg__multimodal_cfg": {"width": 8}}, "OpenCLIP cannot build"),
        ({"preprocess_cfg__std": [0, 0.5, 0.5]}, "std .* is not that of three channels"),
        ({"preprocess_cfg__std": [-1, 0.5, 0.5]}, "std .* is not"),
        ({"preprocess_cfg__std": [0.5, 0.5]}, "std .* is not"),
        ({"preprocess_cfg__mean": "grey"}, "mean 'grey' is not"),
        ({"preprocess_cfg__mean": [0.5, 0.5, 1e9]}, "preprocess_cfg.mean.2 is 1000000000"),
        ({"preprocess_cfg": "none"}, "preprocess_cfg is 'none'"),
    ],
)
def test_a_description_that_no_clip_can_have_is_refused(changes, said, folder):
    with pytest.raises(ValueError, match=said):
        load_clip(describe(folder, **changes))


DEEP = ("[" * 100_000, '{"model_cfg": ' * 900 + "1" + "}" * 900)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", *DEEP, '{"a": NaN}', "\xff"], ids=range(7))
def test_an_odd_description_is_refused(text, folder):
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="cannot (be read as a CLIP's description|build)"):
        load_clip(folder)


def test_a_description_without_statistics_means_those_of_all(folder):
    assert load_clip(describe(folder, preprocess_cfg=None)).std.flatten()[0].item() == pytest.approx(
        0.26862954
    )


def test_a_description_is_a_regular_file(folder):
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    with pytest.raises(CheckpointError, match="holds no CLIP"):
        load_clip(folder)


@pytest.mark.parametrize(
    "tower, key, value, said",
    [
        ("text_config", "vocab_size", 4_000_000, "asks for [0-9,]+ weights"),
        ("text_config", "num_attention_heads", -1, "num_attention_heads: .*greater than 0"),
        ("vision_config", "num_hidden_layers", 10**6, "num_hidden_layers"),
        ("vision_config", "hidden_size", 10**9, "vision_config.hidden_size is 1000000000"),
        ("vision_config", "hidden_act", "__import__", "cannot be read as a CLIP"),
        ("text_config", None, "none", "text_config is 'none'"),
    ],
)
def test_a_description_of_transformers_that_no_clip_can_have_is_refused(tower, key, value, said, tmp_path):
    of_transformers(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    described = json.loads(path.read_text())
    described[tower] = value if key is None else {**described[tower], key: value}
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=said):
        load_clip(tmp_path / "theirs")


# Weights


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(number, folder, tmp_path):
    weights = load_file(folder / WEIGHTS)
    weights["text_projection"][1, 1] = number
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(
        CheckpointError, match="clip holds weights that are no finite numbers.*: text_projection"
    ):
        load_clip(folder)
    of_transformers(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    weights = load_file(path)
    weights["logit_scale"].fill_(number)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="logit_scale holds what is no number"):
        load_clip(tmp_path / "theirs")


def test_a_bit_that_flipped_is_seen(folder):
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not those that were written"):
        load_clip(folder)
    weights = load_file(path)
    save_file(weights, path, metadata={"format": "pt"})  # as it was written before
    load_clip(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: data[:-100], "damaged or cut short"),
        (lambda data: data[:5], "damaged or cut short"),
        (lambda data: b"", "damaged or cut short"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda data: b"<!DOCTYPE html><html>404</html>", "it is a page of the web"),
    ],
)
def test_weights_that_are_cut_or_something_else_are_refused(change, said, folder):
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} .*{said}"):
        load_clip(folder)


def test_identities_are_compared_by_weights_or_by_name():
    assert same_weights("a#01", "b#01") and not same_weights("a#01", "a#02")
    assert same_weights("a", "a#01") and same_weights("a#01", "a") and same_weights("a", "a")
    assert not same_weights("a", "b#01") and not same_weights("a", "b")
    assert same_weights("a#b#01", "a#b#01") and not same_weights("a#b#01", "a#b#02")
