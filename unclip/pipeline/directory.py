"""Pipeline directories: ``model.json`` and a file a stage; written and read, strictly."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AfterValidator, Field

from ..checkpoint import CheckpointError
from ..clip import load_clip, save_clip
from ..config import Config, parse_config
from ..files import read_json, write_json
from ..guides.classifier import load_classifier
from ..stages import Decoder, load_prior

if TYPE_CHECKING:
    from ..guides.noised_clip import NoisedClip
    from ..stages.tokenizer import GlideTokenizer
    from .model import Model


MODEL_FILE = "model.json"
DECODER_FILE = "decoder.safetensors"
FORMAT = 1


def _inside(name: str) -> str:
    """A part's file or folder in the model's own; a model that was downloaded reaches nothing else."""
    path = PurePosixPath(name)
    if ":" in name:
        raise ValueError(
            f"{name!r} would be looked for elsewhere, such as in the network; a model holds its parts "
            "itself (unclip.clip: save_clip(load_clip(...), folder) puts a CLIP there)"
        )
    if not name.strip() or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} lies outside of the model's folder")
    return name


Part = Annotated[str, AfterValidator(_inside)]


class Manifest(Config):
    """``model.json``: the files of a pipeline directory, by stage."""

    format: int = FORMAT
    name: str
    description: str = ""
    clip: Part | None = None
    prior: Part | None = None
    decoder: Part
    upsamplers: list[Part] = Field([], max_length=16)
    tokenizer: Part | None = None  # of stages with a text transformer of their own
    guide: Part | None = None  # a CLIP of noised pictures
    classifier: Part | None = None  # of noised pictures
    weaker: Part | None = None  # a decoder to be led away from


def read_manifest(folder: str | Path) -> Manifest:
    """The ``model.json`` of a pipeline directory; raises ``CheckpointError`` if it is none."""
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model: it holds no {MODEL_FILE}, nor a {DECODER_FILE}")
    try:
        values = read_json(path, "a model's list of its parts")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another version; this version reads format {FORMAT}")
    return parse_config(Manifest, values, source=str(path))


def write(model: Model, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write every part of ``pipeline``, and last the manifest; floats are stored as ``dtype``."""
    files: dict[str, str] = {}
    for name in ("decoder", "prior", "guide", "classifier", "weaker"):
        part = getattr(model, name)
        if part is not None:
            files[name] = f"{name}.safetensors"
            part.save(folder / files[name], dtype)
    upsamplers = [f"upsampler-{stage.size}.safetensors" for stage in model.upsamplers]
    for stage, file in zip(model.upsamplers, upsamplers, strict=True):
        stage.save(folder / file, dtype)
    if model.clip is not None:
        files["clip"] = "clip"
        save_clip(model.clip, folder / "clip")
    if model.tokenizer is not None:
        files["tokenizer"] = "tokenizer"
        model.tokenizer.save(folder / "tokenizer")
    manifest = Manifest(name=model.name, description=model.description, upsamplers=upsamplers, **files)
    write_json(folder / MODEL_FILE, manifest.model_dump(exclude_none=True))


def read(
    folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, downloads: bool = False
) -> dict[str, Any]:
    """The parts that ``Pipeline`` is made of, by the names of its arguments, on ``device``.

    dtype:     of the weights of all but CLIP, as in ``load_stage``.
    downloads: whether the model's CLIP may fetch what its description names, as in ``load_clip``.
    """
    if folder.is_file() or (folder / DECODER_FILE).is_file() and not (folder / MODEL_FILE).exists():
        return _read_decoder(folder, device, dtype)
    manifest = read_manifest(folder)
    prior, classifier, to = manifest.prior, manifest.classifier, (device, dtype)
    weaker = manifest.weaker
    return {
        "clip": None if manifest.clip is None else load_clip(folder / manifest.clip, device, downloads),
        "prior": None if prior is None else load_prior(folder / prior, *to),
        "decoder": Decoder.load(folder / manifest.decoder, *to),
        "upsamplers": [Decoder.load(folder / file, *to) for file in manifest.upsamplers],
        "tokenizer": None if manifest.tokenizer is None else _tokenizer(folder / manifest.tokenizer),
        "guide": None if manifest.guide is None else _guide(folder / manifest.guide, *to),
        "classifier": None if classifier is None else load_classifier(folder / classifier, *to),
        "weaker": None if weaker is None else Decoder.load(folder / weaker, *to),
        "name": manifest.name,
        "description": manifest.description,
    }


def _tokenizer(folder: Path) -> GlideTokenizer:
    from ..stages.tokenizer import GlideTokenizer  # few models have one

    return GlideTokenizer.load(folder)


def _guide(path: Path, device: torch.device, dtype: torch.dtype) -> NoisedClip:
    from ..guides.noised_clip import load_noised_clip

    return load_noised_clip(path, device, dtype)


def _read_decoder(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A decoder of nothing, or of classes, as a whole model: its checkpoint, or the folder with it."""
    file = path if path.is_file() else path / DECODER_FILE
    decoder = Decoder.load(file, device, dtype)
    if needs := {kind.need: None for kind in decoder.kinds if kind.need}:
        needed = " and ".join(needs)
        raise CheckpointError(
            f"{path} is not a model: it holds no {MODEL_FILE}, only a decoder, which "
            f"takes {needed}; training.chain puts stages together (--assemble)"
        )
    return {"decoder": decoder, "name": file.resolve().parent.name}
