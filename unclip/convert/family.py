"""What a family of public weights says of itself: how it is recognised, and how it becomes a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Required, TypedDict

from .catalogue import PublicModel

if TYPE_CHECKING:
    from ..guides.classifier import ClassifierStageConfig
    from ..guides.noised_clip import NoisedClipStageConfig
    from ..pipeline.pipeline import Pipeline
    from ..stages import DecoderStageConfig, PriorStageConfig

Files = Mapping[str, Path]  # a model's files, or its folder, by their roles
TENSOR_FILES = {".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"}


class StageConfigs(TypedDict, total=False):
    """The stage configurations of a model, and the number of its CLIP's parameters."""

    decoder: Required[DecoderStageConfig]
    upsamplers: list[DecoderStageConfig]
    prior: PriorStageConfig
    classifier: ClassifierStageConfig
    guide: NoisedClipStageConfig
    clip: int


class Family:
    """Weights that were published in one layout. No heavy import until it is asked for a configuration or a
    pipeline."""

    name: ClassVar[str]  # as ``PublicModel.family`` has it

    def recognise(self, path: Path) -> bool:
        """Whether a user's file or folder looks like this family's; by names, nothing is read."""
        raise NotImplementedError

    def files_of(self, path: Path) -> tuple[PublicModel | None, Files]:
        """Which model a path is that was recognised, and its files; what it lacks beside it is fetched.

        None for one that the files describe themselves. Raises ``CheckpointError`` for none that is known.
        """
        raise NotImplementedError

    def fetched(self, model: PublicModel) -> Files:
        """A model's files by name, fetched where they are not here yet."""
        from . import fetch

        return fetch.fetch_model(model)

    def configs(self, model: PublicModel) -> StageConfigs:
        """The stage configurations of a model, from the catalogue alone."""
        raise NotImplementedError

    def pipeline(self, model: PublicModel | None, files: Files) -> Pipeline:
        """The model on the CPU in float32; raises ``CheckpointError`` for what does not fit, by tensor."""
        raise NotImplementedError
