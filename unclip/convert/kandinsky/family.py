"""Kandinsky as a family: a folder with the two of diffusers, the prior's and the decoder's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalogue import PublicModel
from ..family import Family, Files, StageConfigs

if TYPE_CHECKING:
    from ...pipeline.pipeline import Pipeline

ROLES = ("prior", "decoder")


class Kandinsky(Family):
    """The folders say themselves what they hold; any whose names have "prior" and "decoder" in them will do,
    such as those of the hub's repositories."""

    name = "kandinsky"

    def recognise(self, path: Path) -> bool:
        return path.is_dir() and all(self._folders(path, role) for role in ROLES)

    def files_of(self, path: Path) -> tuple[None, Files]:
        from ...checkpoint import CheckpointError

        files = {role: self._folders(path, role) for role in ROLES}
        for role, folders in files.items():
            if len(folders) > 1:
                several = ", ".join(folder.name for folder in folders)
                raise CheckpointError(f"{path} holds several folders of a {role}: {several}; leave one")
        return None, {role: folders[0] for role, folders in files.items()}

    def fetched(self, model: PublicModel) -> Files:
        from .. import fetch

        return {role: fetch.fetch_snapshot(model, role) for role in ROLES}

    def configs(self, model: PublicModel) -> StageConfigs:
        from . import pipeline

        return pipeline.configs(model)

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        from .pipeline import from_diffusers

        return from_diffusers(files)

    @staticmethod
    def _folders(path: Path, role: str) -> list[Path]:
        return sorted(index.parent for index in path.glob(f"*{role}*/model_index.json"))
