"""Public weights by name, or from files in their original layouts, as pipelines of our own networks.

    load("glide"), load("kandinsky-2.2"), load("adm-256-class")      fetched when first asked for
    load("some/folder")      GLIDE's .pt files, Karlo's .ckpt files, or diffusers' of Karlo, Kandinsky
    load("some/file.pt")     a model of guided-diffusion or improved-diffusion

Names and configurations alone; the networks are those that we train. No heavy import until it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .catalogue import MODELS, PRIORS, PublicModel
from .family import Family, StageConfigs
from .kandinsky.family import Kandinsky
from .karlo.family import Karlo
from .openai.families import Adm, Glide

if TYPE_CHECKING:
    import torch

    from ..pipeline.pipeline import Pipeline
    from ..stages import AnyPrior

__all__ = [
    "FAMILIES", "MODELS", "PRIORS", "Family", "PublicModel", "configs", "family_of", "load", "load_prior",
    "recognised",
]  # fmt: skip

ECLIPSE_OF = {1280: "kandinsky", 768: "karlo"}  # whose embeddings have so many numbers
# Asked in this order whether a path is theirs; the last takes any file of tensors.
FAMILIES: dict[str, Family] = {family.name: family for family in (Glide(), Kandinsky(), Karlo(), Adm())}


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

    model = MODELS.get(name_or_path) if isinstance(name_or_path, str) else None
    family = family_of(Path(name_or_path)) if model is None else FAMILIES[model.family]
    if family is None:
        raise CheckpointError(f"{name_or_path} holds no public model that is known here")
    if model is None:
        model, files = family.files_of(Path(name_or_path))
    else:
        files = family.fetched(model)
    pipeline = family.pipeline(model, files)
    if model is not None:
        _name(pipeline, model)
    return pipeline.place(device, dtype, offload).eval()


def load_prior(name_or_path: str | Path, pipeline: Pipeline, dtype: torch.dtype) -> AnyPrior:
    """A prior for ``pipeline.with_prior``: one of ``PRIORS`` by name, a checkpoint of ours, or the folder of
    one of ECLIPSE's.

    Raises ``CheckpointError`` for what is none, or cannot be fetched.
    """
    from ..checkpoint import CheckpointError
    from ..resources.devices import place
    from ..stages import load_prior as load_ours
    from . import fetch
    from .kandinsky.eclipse import load_eclipse

    path, public = Path(name_or_path), PRIORS.get(str(name_or_path))
    if public is not None:
        if pipeline.clip is None or (family := ECLIPSE_OF.get(pipeline.clip.embed_dim)) is None:
            raise CheckpointError(f"{public.name} is {public.about}, not for {pipeline.name}")
        path = fetch.fetch_snapshot(public, family)
    elif not (path / "config.json").is_file():
        return load_ours(path, pipeline.device, dtype)
    prior = load_eclipse(path)
    place(prior, pipeline.device, dtype)
    if pipeline.clip is not None:
        prior.facts["clip"] = pipeline.clip.identity
    return prior


def family_of(path: Path) -> Family | None:
    """The family that a file or folder looks like it is of; nothing is read."""
    return next((family for family in FAMILIES.values() if family.recognise(path)), None)


def recognised(path: str | Path) -> bool:
    """Whether a file or folder looks like a public model in an original layout; nothing is read."""
    return family_of(Path(path)) is not None


def configs(model: PublicModel) -> StageConfigs:
    """The stage configurations of a model, as ``Family.configs`` has them."""
    return FAMILIES[model.family].configs(model)


def _name(pipeline: Pipeline, model: PublicModel) -> None:
    """Its name, and the words about its licence, which are shown once and saved with it."""
    from .fetch import licence_line, notice

    notice(model)
    pipeline.name = model.name
    pipeline.description = f"{model.about}. {licence_line(model)}"
