"""Karlo as a family: the folder of its authors' files, or that of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalogue import PublicModel
from ..family import Family, Files, StageConfigs

if TYPE_CHECKING:
    from ...pipeline.pipeline import Pipeline

_ORIGINAL = ("prior-ckpt*.ckpt", "decoder-ckpt*.ckpt", "improved-sr-ckpt*.ckpt")
_INDEX = "model_index.json"  # of diffusers


class Karlo(Family):
    """Either layout says itself what it holds."""

    name = "karlo"

    def recognise(self, path: Path) -> bool:
        return path.is_dir() and (
            (path / _INDEX).is_file() or any(any(path.glob(pattern)) for pattern in _ORIGINAL)
        )

    def files_of(self, path: Path) -> tuple[None, Files]:
        return None, {"diffusers" if (path / _INDEX).is_file() else "original": path}

    def fetched(self, model: PublicModel) -> Files:
        from .. import fetch

        return {"diffusers": fetch.fetch_snapshot(model)}

    def configs(self, model: PublicModel) -> StageConfigs:
        from . import pipeline

        return pipeline.configs(model)

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        from .pipeline import from_diffusers, from_original

        if "diffusers" in files:
            return from_diffusers(files["diffusers"])
        return from_original(files["original"])
