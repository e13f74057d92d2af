"""A family of public weights is one object: here is one more, of decoders in a file of plain tensors."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import decoder

import unclip
from unclip import convert
from unclip.checkpoint import load_strictly
from unclip.convert.catalogue import MODELS, PublicModel
from unclip.convert.family import Family, Files
from unclip.models import find
from unclip.pipeline.pipeline import Pipeline
from unclip.plan import plan
from unclip.stages import Decoder, Sampling


@cache
def original() -> Decoder:
    return decoder(net={}, sampling=Sampling(steps=2))


class Plain(Family):
    name = "plain"
    folder: Path  # from where a model is "fetched"

    def recognise(self, path: Path) -> bool:
        return path.is_dir() and (path / "plain.weights").is_file()

    def files_of(self, path: Path) -> tuple[PublicModel, Files]:
        return MODELS["plain-8"], {"decoder": path / "plain.weights"}

    def fetched(self, model: PublicModel) -> Files:
        return self.files_of(self.folder)[1]

    def configs(self, model: PublicModel) -> dict[str, object]:
        return {"decoder": original().config}

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        stage = Decoder.blank(original().config)
        load_strictly(stage, load_file(files["decoder"]), str(files["decoder"]))
        return Pipeline(stage)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    plain = Plain()
    plain.folder = tmp_path / "published"
    plain.folder.mkdir()
    save_file({k: v.contiguous() for k, v in original().state_dict().items()}, plain.folder / "plain.weights")
    model = replace(MODELS["adm-64-class"], name="plain-8", family="plain", about="noise, 8 px", files={})
    monkeypatch.setitem(MODELS, "plain-8", model)
    monkeypatch.setitem(convert.FAMILIES, "plain", plain)
    return plain.folder


@pytest.mark.parametrize("by_name", [True, False])
def test_it_loads_and_draws_by_name_and_by_path(folder, by_name):
    assert find("plain-8" if by_name else folder) is None and "plain-8" in unclip.known_models()
    with pytest.warns(UserWarning, match="plain-8 is published under MIT"):
        model = unclip.load("plain-8" if by_name else folder, "cpu")
    drawn = model.generate(seed=1)
    assert (np.asarray(drawn) == np.asarray(Pipeline(original()).generate(seed=1))).all()
    assert model.name == "plain-8" and model.description.startswith("noise, 8 px. ")


def test_it_is_planned_without_its_files(folder):
    (folder / "plain.weights").unlink()
    assert plan("plain-8").parameters == sum(value.numel() for value in original().parameters())


def test_what_does_not_fit_is_named(folder):
    save_file({"network.out.bias": torch.ones(1)}, folder / "plain.weights")
    with pytest.raises(ValueError, match="plain.weights does not fit the network"):
        unclip.load(folder, "cpu")
