"""The table of public models, and how their names and files are recognised."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import public
import pytest
import torch
from places import fixtures

import unclip
from unclip import convert
from unclip.checkpoint import CheckpointError
from unclip.convert import fetch
from unclip.convert.catalogue import MODELS
from unclip.convert.openai import recognise

pytestmark = pytest.mark.filterwarnings("ignore:.*is published under")

MANIFESTS = fixtures("manifests/*.json")
OPENAI = [path for path in MANIFESTS if not path.stem.startswith("karlo")]
ADM = [path for path in OPENAI if not path.stem.startswith("glide")]


def manifest(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", OPENAI, ids=lambda path: path.stem)
def test_released_models_are_in_the_table_as_they_were_built(path):
    family = path.stem.partition("-")[0]
    config = manifest(path)["config"]
    names = {name for name, model in MODELS.items() for args in model.args.values() if dict(args) == config}
    assert names, "no model of the table has these arguments"
    assert (path.stem in names) if family in ("adm", "iddpm") else names <= {"glide", "glide-inpaint"}


def test_every_name_is_known():
    assert {"icons", "glide", "glide-inpaint", "karlo"} <= set(unclip.known_models())
    assert set(MODELS) <= set(unclip.known_models())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_entry_says_all_that_is_needed(model):
    assert model.licence.name and model.licence.address.startswith("https://")
    assert model.licence.card.startswith("https://") and model.licence.note.endswith(".")
    assert bool(model.files) != bool(model.hub)
    for file in model.files.values():
        assert file.address.startswith("https://") and "/" not in file.name
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    if model.family == "adm":
        assert model.files.keys() == model.args.keys()
    if model.serves is not None:
        assert model.files["decoder"] == MODELS[model.serves].files["decoder"]
        assert len(model.files) == 2


def test_a_file_is_kept_under_a_name_of_its_own():
    addresses: dict[tuple[str, str], set[str]] = {}
    for model in MODELS.values():
        for file in model.files.values():
            addresses.setdefault((model.family, file.name), set()).add(file.address)
    assert all(len(found) == 1 for found in addresses.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_model_has_configurations(model):
    configs = convert.configs(model)
    size = configs["decoder"].size
    for upsampler in configs.get("upsamplers", ()):
        assert upsampler.low_res.size == size
        size = upsampler.net.image_size
    assert str(size) in model.about
    if model.serves and "classifier" in model.args:
        assert configs["classifier"].scale == model.classifier_scale
        assert configs["classifier"].net.image_size == configs["decoder"].net.image_size


def shapes(path: Path) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in manifest(path)["tensors"].items()}


@pytest.mark.parametrize("path", ADM, ids=lambda path: path.stem)
def test_a_file_is_recognised_by_its_shapes(path, monkeypatch):
    monkeypatch.setattr(recognise, "read", lambda _: shapes(path))
    model, role = recognise.model_of(Path("ema_0.9999.pt"))
    assert model.name == path.stem and dict(model.args[role]) == manifest(path)["config"]


def test_a_file_is_recognised_by_its_name(monkeypatch):
    monkeypatch.setattr(recognise, "read", lambda path: pytest.fail("the file was read"))
    for name, role in (
        ("lsun_cat.pt", "decoder"),
        ("64_256_upsampler.pt", "upsampler"),
        ("512x512_classifier.pt", "classifier"),
    ):
        model, found = recognise.model_of(Path(name))
        assert found == role and model.files[role].name == name


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": (1,)},
        {"time_embed.0.weight": (8, 2)},
        {"time_embed.0.weight": (8, 2), "input_blocks.0.0.weight": (2, 3, 3, 3)},
        {"out.2.qkv_proj.weight": (1,)},
    ],
)
def test_a_file_of_something_else_is_refused(tensors, monkeypatch):
    monkeypatch.setattr(recognise, "read", lambda _: {k: torch.empty(v) for k, v in tensors.items()})
    with pytest.raises(CheckpointError, match="x.pt holds none of the models.*adm-64-class"):
        recognise.model_of(Path("x.pt"))


def layout(folder: Path, *files: str) -> Path:
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "files, wanted",
    [
        (["base.pt", "upsample.pt"], ("glide", "glide")),
        (["base_inpaint.pt"], ("glide", "glide-inpaint")),
        (["base.pt", "base_inpaint.pt"], ("glide", "glide")),
        (["model_index.json"], ("karlo", "diffusers")),
        (["prior-ckpt-step=01000000-of-01000000.ckpt", "ViT-L-14.pt"], ("karlo", "original")),
        (["notes.txt"], None),
    ],
)
def test_original_layouts_are_recognised(tmp_path, monkeypatch, files, wanted):
    monkeypatch.setattr(fetch, "fetch_model", lambda model, folder: {model.name: folder})
    folder = layout(tmp_path / "some", *files)
    assert convert.recognised(folder) == (wanted is not None)
    if wanted:
        family = convert.family_of(folder)
        assert family.name == wanted[0] and family.files_of(folder)[1] == {wanted[1]: folder}


def test_one_file_of_glide_means_its_folder(tmp_path, monkeypatch):
    asked: list[tuple] = []
    monkeypatch.setattr(fetch, "fetch_model", lambda *args: asked.append(args))
    folder = layout(tmp_path / "some", "base.pt", "base_inpaint.pt")
    model, _ = convert.family_of(folder / "base_inpaint.pt").files_of(folder / "base_inpaint.pt")
    needed = {"base", "upsample", "encoder", "vocab"}  # it draws without its noised CLIP
    assert model.name == "glide-inpaint" and asked[0][1] == folder and asked[0][0].files.keys() == needed


def picture(pipeline: unclip.Pipeline) -> np.ndarray:
    return np.asarray(pipeline.generate(seed=3))


def test_a_public_name_loads_and_draws(tmp_path, monkeypatch):
    model = public.publish(monkeypatch, tmp_path)
    pipeline = unclip.load(public.NAME, "cpu")
    assert pipeline.name == public.NAME and model.licence.card in pipeline.description
    assert not pipeline.training and not any(p.requires_grad for p in pipeline.parameters())
    assert picture(pipeline).shape == (16, 16, 3)


@pytest.mark.bitwise
def test_the_same_file_by_its_path(tmp_path, monkeypatch):
    public.publish(monkeypatch, tmp_path)
    wanted = picture(unclip.load(public.NAME, "cpu"))
    file = shutil.copy(tmp_path / "adm" / "tiny.pt", tmp_path / "renamed.pt")
    for path in (tmp_path / "adm" / "tiny.pt", file):
        assert (picture(unclip.load(path, "cpu")) == wanted).all()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda data: data[: len(data) // 2], "damaged or cut short"),
        (lambda data: b"not a checkpoint", "damaged or cut short"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, monkeypatch, spoil, said):
    public.publish(monkeypatch, tmp_path)
    file = tmp_path / "adm" / "tiny.pt"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(CheckpointError, match=f"tiny.pt cannot be read: it is {said}"):
        unclip.load(public.NAME, "cpu")


def test_the_licence_is_shown_with_the_first_use_only(tmp_path, monkeypatch):
    public.publish(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match="adm-tiny is published under MIT"):
        unclip.load(public.NAME, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unclip.load(public.NAME, "cpu")


def test_what_is_no_model_says_what_is(tmp_path):
    with pytest.raises(ValueError, match="no model 'glid'.*known models are: icons, glide, .*karlo"):
        unclip.load("glid")
    with pytest.raises(ValueError, match="is not a model"):
        unclip.load(layout(tmp_path / "some", "notes.txt"))
    with pytest.raises(ValueError, match="kept as float32 or bfloat16, not as int8"):
        unclip.load("icons", "cpu", "int8")


@pytest.mark.parametrize(
    "name, stage, published",
    [
        ("glide", "decoder", {"steps": 100, "guidance_scale": 3.0, "sampler": "ddpm", "gradient": "mean"}),
        ("glide-inpaint", "decoder", {"steps": 100, "guidance_scale": 5.0}),
        (
            "glide",
            "upsampler",
            {"steps": "fast27", "noise_scale": 0.997, "sampler": "ddim", "guidance_scale": 1.0},
        ),
        ("glide-inpaint", "upsampler", {"steps": "fast27", "noise_scale": 0.997, "sampler": "ddpm"}),
        ("karlo", "prior", {"steps": 25, "guidance_scale": 4.0}),
        ("karlo", "decoder", {"steps": 25, "guidance_scale": 8.0}),
        ("adm-256-class", "decoder", {"steps": 250, "guidance_scale": 1.0, "sampler": "ddpm"}),
        ("adm-lsun-cat", "decoder", {"steps": 1000}),
    ],
)
def test_sampling_defaults_are_the_published_ones(name, stage, published):
    configs = convert.configs(MODELS[name])
    config = configs["upsamplers"][0] if stage == "upsampler" else configs[stage]
    assert {key: getattr(config.sampling, key) for key in published} == published
    if stage == "upsampler":
        assert config.low_res.round_to_8bit
