"""Public weights by name, or from files in their original layouts, as pipelines of our own networks.

    load("glide"), load("karlo"), load("adm-256-class")      fetched when first asked for
    load("some/folder")      GLIDE's .pt files, Karlo's .ckpt files, or a folder of diffusers
    load("some/file.pt")     a model of guided-diffusion or improved-diffusion

Names and configurations alone; the networks are those that we train. No heavy import until it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .catalogue import MODELS, PublicModel

if TYPE_CHECKING:
    import torch

    from ..pipeline.pipeline import Pipeline

__all__ = ["MODELS", "PublicModel", "load", "recognised"]

_TENSOR_FILES = {".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"}
_OPTIONAL = {"clip_image", "clip_text"}  # GLIDE draws without its noised CLIP
_KARLO_FILES = ("prior-ckpt*.ckpt", "decoder-ckpt*.ckpt", "improved-sr-ckpt*.ckpt")


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    offload: bool = False,
) -> Pipeline:
    """A public model, by name or from its original files; the arguments are those of ``unclip.load``.

    Raises ``CheckpointError`` for what is no such model, cannot be fetched, or does not fit its network
    tensor by tensor.
    """
    from ..checkpoint import CheckpointError

    build = _builder(name_or_path)
    if build is None:
        raise CheckpointError(f"{name_or_path} holds no public model that is known here")
    pipeline = build()
    pipeline.place(device, dtype, offload)
    return pipeline.eval()


def recognised(path: str | Path) -> bool:
    """Whether a file or folder looks like a public model in an original layout; nothing is read."""
    return _builder(Path(path)) is not None


def configs(model: PublicModel) -> dict[str, object]:
    """The stage configurations of a model by name ("prior", "decoder", "classifier", "guide", and a list of
    "upsamplers"), and the number of "clip"'s parameters, from the table alone."""
    return _family(model).configs(model)


def _family(model: PublicModel) -> ModuleType:
    if model.family == "glide":
        from .openai import glide as found
    elif model.family == "karlo":
        from .karlo import pipeline as found
    else:
        from .openai import adm as found
    return found


def _builder(name_or_path: str | Path) -> Callable[[], Pipeline] | None:
    """What makes the pipeline, on the CPU in float32; None for what is no public model."""
    if isinstance(name_or_path, str) and name_or_path in MODELS:
        return partial(_by_name, MODELS[name_or_path])
    path = Path(name_or_path)
    folder = path.parent if path.is_file() else path
    for name in ("glide", "glide-inpaint"):
        weights = {MODELS[name].files[role].name for role in ("base", "upsample")}
        if (
            path.name in weights
            and path.is_file()
            or path.is_dir()
            and any((path / file).is_file() for file in weights)
        ):
            return partial(_glide, MODELS[name], folder)
    if path.is_dir() and (path / "model_index.json").is_file():
        return partial(_karlo, path, "from_diffusers")
    if path.is_dir() and any(any(path.glob(pattern)) for pattern in _KARLO_FILES):
        return partial(_karlo, path, "from_original")
    if path.is_file() and path.suffix in _TENSOR_FILES:
        return partial(_single, path)
    return None


def _by_name(model: PublicModel) -> Pipeline:
    from . import fetch

    if model.hub is not None:
        return _named(_karlo(fetch.fetch_snapshot(model), "from_diffusers"), model)
    return _built(model, fetch.fetch_model(model))


def _built(model: PublicModel, files: Mapping[str, Path]) -> Pipeline:
    if model.family == "glide":
        return _named(_family(model).pipeline(files, inpaint=model.name.endswith("inpaint")), model)
    return _named(_family(model).pipeline(files, model), model)


def _glide(model: PublicModel, folder: Path) -> Pipeline:
    """From a user's folder; its two files of vocabulary are fetched if they are not there."""
    from . import fetch

    own = {role for role in _OPTIONAL if not (folder / model.files[role].name).is_file()}
    return _built(model, fetch.fetch_model(_without(model, own), folder))


def _without(model: PublicModel, roles: set[str]) -> PublicModel:
    return replace(model, files={role: file for role, file in model.files.items() if role not in roles})


def _karlo(folder: Path, layout: str) -> Pipeline:
    from .karlo import pipeline as karlo

    return getattr(karlo, layout)(folder)


def _single(path: Path) -> Pipeline:
    """From one file of ADM or improved DDPM; an upsampler's base, or a classifier's decoder, lies beside
    it or is fetched."""
    from . import fetch
    from .openai.recognise import model_of

    model, role = model_of(path)
    others = fetch.fetch_model(_without(model, {role}), path.parent)
    return _built(model, {**others, role: path})


def _named(pipeline: Pipeline, model: PublicModel) -> Pipeline:
    """With its name, and the words about its licence, which are shown once and saved with it."""
    from .fetch import licence_line, notice

    notice(model)
    pipeline.name = model.name
    pipeline.description = f"{model.about}. {licence_line(model)}"
    return pipeline
