"""OpenAI's two families: GLIDE, of several files in a folder; and ADM with improved DDPM, of single files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..catalogue import MODELS, PublicModel
from ..family import TENSOR_FILES, Family, Files, StageConfigs

if TYPE_CHECKING:
    from ...pipeline.pipeline import Pipeline

_OPTIONAL = {"clip_image", "clip_text"}  # GLIDE draws without its noised CLIP


class Glide(Family):
    """A folder with the .pt files of one of its models, or one of these files."""

    name = "glide"

    def recognise(self, path: Path) -> bool:
        return self._model(path) is not None

    def _model(self, path: Path) -> PublicModel | None:
        for model in (model for model in MODELS.values() if model.family == self.name):
            weights = {model.files[role].name for role in ("base", "upsample")}
            if path.is_file() and path.name in weights:
                return model
            if path.is_dir() and any((path / file).is_file() for file in weights):
                return model
        return None

    def files_of(self, path: Path) -> tuple[PublicModel, Files]:
        """Its two files of vocabulary are fetched if they are not there."""
        from ...checkpoint import CheckpointError
        from .. import fetch

        model, folder = self._model(path), path.parent if path.is_file() else path
        if model is None:
            raise CheckpointError(f"{path} holds no file of GLIDE")
        absent = {role for role in _OPTIONAL if not (folder / model.files[role].name).is_file()}
        return model, fetch.fetch_model(_without(model, absent), folder)

    def configs(self, model: PublicModel) -> StageConfigs:
        from . import glide

        return glide.configs(model)

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        from . import glide

        return glide.pipeline(files, model=model)


class Adm(Family):
    """One file of tensors: a decoder, or an upsampler or a classifier that serves one."""

    name = "adm"

    def recognise(self, path: Path) -> bool:
        return path.is_file() and path.suffix in TENSOR_FILES

    def files_of(self, path: Path) -> tuple[PublicModel, Files]:
        """An upsampler's base, or a classifier's decoder, lies beside it or is fetched."""
        from .. import fetch
        from .recognise import model_of

        model, role = model_of(path)
        return model, {**fetch.fetch_model(_without(model, {role}), path.parent), role: path}

    def configs(self, model: PublicModel) -> StageConfigs:
        from . import adm

        return adm.configs(model)

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        from ...checkpoint import CheckpointError
        from . import adm

        if model is None:
            raise CheckpointError("files of ADM do not say which model they are of")
        return adm.pipeline(files, model)


def _without(model: PublicModel, roles: set[str]) -> PublicModel:
    return replace(model, files={role: file for role, file in model.files.items() if role not in roles})
