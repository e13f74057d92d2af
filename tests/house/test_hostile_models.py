"""Model folders, vocabularies and recipes of strangers: what they name, and what they hold."""

import gzip
import json
import os
from pathlib import Path

import pytest

import unclip
from unclip.checkpoint import CheckpointError, read_header
from unclip.clip import load_clip
from unclip.config import Config, ConfigError, at_home, load_config
from unclip.convert import diffusers_layout
from unclip.convert.karlo import pipeline as karlo
from unclip.models import SHIPPED
from unclip.pipeline import directory
from unclip.stages.tokenizer import ENCODER, SIZES, VOCAB, GlideTokenizer

pytestmark = pytest.mark.attack


def write(folder: Path, **changes: object) -> Path:
    values = json.loads((SHIPPED / "icons" / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize("clip", ["transformers:x/y", "open_clip:ViT-B-32", "hf-hub:x/y", "https://x.y/z"])
def test_a_models_clip_is_not_taken_from_the_network(tmp_path, monkeypatch, clip):
    """Nor where the folder is the current one, so that joining it changes nothing of the name."""
    monkeypatch.setattr(directory, "load_clip", lambda *_: pytest.fail("it was asked for"))
    monkeypatch.chdir(write(tmp_path, clip=clip))
    for folder in (tmp_path, "."):
        with pytest.raises(ConfigError, match="clip: .*such as in the network; .*save_clip"):
            unclip.load(folder, "cpu")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../other/decoder.safetensors", "a/../../b", "..", "", "\0", "a\\b"]
)
@pytest.mark.parametrize(
    "part", ["decoder", "prior", "clip", "tokenizer", "guide", "classifier", "upsamplers"]
)
def test_a_model_names_nothing_outside_of_its_folder(tmp_path, part, name):
    write(tmp_path, **{part: [name] if part == "upsamplers" else name})
    with pytest.raises(ConfigError, match=f"{part}.*lies outside of the model's folder"):
        unclip.load(tmp_path, "cpu")


@pytest.mark.parametrize("downloads", [False, True])
def test_a_models_clip_fetches_nothing_unless_that_is_allowed(tmp_path, monkeypatch, downloads):
    asked: list[tuple] = []

    def load(folder: Path, device: object, downloads: bool) -> None:
        asked.append((folder, downloads))
        raise CheckpointError("seen")

    monkeypatch.setattr(directory, "load_clip", load)
    write(tmp_path)
    with pytest.raises(CheckpointError, match="seen"):
        unclip.load(tmp_path, "cpu", **({"downloads": True} if downloads else {}))
    assert asked == [(tmp_path / "clip", downloads)]


def test_the_shipped_models_parts_are_its_own():
    assert directory.read_manifest(SHIPPED / "icons").clip == "clip"


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 100_000, "nested too deep"),
        ("[]", "holds no JSON object"),
        ("{", "is no JSON"),
        ('{"format": 2}', "of another version"),
        (json.dumps({"format": 1, "name": "n", "decoder": "d", "upsamplers": ["u"] * 10_000}), "at most 16"),
        (json.dumps({"format": 1, "name": "n", "decoder": {"a": 1}}), "decoder: "),
    ],
)
def test_odd_lists_of_parts_are_refused_in_words(tmp_path, text, said):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        unclip.load(tmp_path, "cpu")


def test_a_list_of_parts_that_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "model_index.json")
    with pytest.raises(CheckpointError, match="is a pipe, not a file"):
        karlo.from_diffusers(tmp_path)


@pytest.mark.parametrize("names", [{"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {}, ["a"], None])
def test_an_index_of_weights_names_files_beside_it_alone(tmp_path, names):
    index = tmp_path / f"{diffusers_layout.WEIGHTS[0]}.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="does not name files beside it"):
        diffusers_layout.read_weights(tmp_path)


@pytest.mark.parametrize("length", [-1, 0, 10**9, "many", None])
def test_a_tokenizers_length_has_bounds(tmp_path, length):
    (tmp_path / SIZES).write_text(json.dumps({"length": length}))
    with pytest.raises(ConfigError, match="length: "):
        GlideTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"a": [0]}', '{"a": true}', '{"a": 7}'])
def test_odd_vocabularies_are_refused_in_words(tmp_path, text):
    (tmp_path / VOCAB).write_bytes(gzip.compress(b"#version\na b\n"))
    (tmp_path / ENCODER).write_bytes(gzip.compress(text.encode()))
    with pytest.raises(CheckpointError, match=f"{ENCODER} is "):
        GlideTokenizer.load(tmp_path)


def test_a_vocabulary_that_unpacks_to_more_than_a_vocabulary_is_refused(tmp_path):
    """A gigabyte of zeros is a megabyte when packed."""
    with gzip.open(tmp_path / ENCODER, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match="holds more than 67,108,864 bytes"):
        GlideTokenizer.load(tmp_path)


# Paths in recipes


class Recipe(Config):
    out: str
    shards: list[str] = []
    inner: dict[str, str] = {}


def test_a_tilde_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("out: ~/run\nshards: ['~/{0..3}.tar', 'a~/b', '~']\ninner: {a: ~/x}\n")
    recipe = load_config(Recipe, tmp_path / "r.yaml")
    assert recipe.out == f"{tmp_path}/run" and recipe.inner == {"a": f"{tmp_path}/x"}
    assert recipe.shards == [f"{tmp_path}/{{0..3}}.tar", "a~/b", str(tmp_path)]
    assert load_config(Recipe, tmp_path / "r.yaml", ["out=~/other"]).out == f"{tmp_path}/other"


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "$HOME/x", "$NOTHING", "~nobody-of-that-name/"])
def test_a_folder_is_not_called_by_what_a_shell_would_have_replaced(path):
    with pytest.raises(ValueError, match="begins with what is not known here"):
        at_home({"train": {"out": path}})
    assert at_home(["~", "a ~ b", "~ 5 dollars", "$5 and up"])[1:] == ["a ~ b", "~ 5 dollars", "$5 and up"]
    assert at_home("~") == os.path.expanduser("~")


@pytest.mark.parametrize("look", [lambda path: load_config(Recipe, path), read_header, GlideTokenizer.load])
def test_what_a_relative_path_does_not_lead_to_says_from_where(tmp_path, monkeypatch, look):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"looked up from {tmp_path}"):
        look("absent/thing")
    with pytest.raises(ValueError) as caught:
        look(tmp_path / "absent")
    assert "looked up" not in str(caught.value)


def test_a_folder_is_no_address():
    with pytest.raises(CheckpointError, match="holds no CLIP"):
        load_clip(Path("absent"))
