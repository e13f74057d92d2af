"""CLIPs in folders: built, saved and loaded again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint import CheckpointError, load_strictly
from ..files import written_aside
from ..nets.clip import ClipConfig
from .encoders import Clip
from .public import (
    MEAN,
    STD,
    byte_pairs,
    fresh_open_clip,
    load_open_clip,
    load_transformers,
    named_config,
    quiet,
)
from .towers import PlainTowers, TransformersTowers

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OTHER_CONFIG = "config.json"  # of transformers


def build_clip(model_cfg: dict | str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Clip:
    """A CLIP with random weights, from an OpenCLIP `model_cfg` or the name of one.

    Raises ValueError for an unknown name.
    """
    if isinstance(model_cfg, str):
        name, model_cfg = model_cfg, named_config(model_cfg)
    else:
        name = "clip"
    try:
        towers = PlainTowers(ClipConfig.model_validate(model_cfg), byte_pairs())
    except ValidationError:  # more than our towers can
        towers = fresh_open_clip(model_cfg)
    return Clip(towers, mean, std, name)


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> Clip:
    """`open_clip:NAME[@tag-or-checkpoint]`, `transformers:ID-or-folder`, or a folder of `save_clip`.

    Raises CheckpointError for a folder that is none, ValueError for an unknown name.
    """
    kind, _, name = str(source).partition(":")
    if kind == "open_clip" and name:
        clip = load_open_clip(name)
    elif kind == "transformers" and name:
        clip = load_transformers(name)
    else:
        clip = _load_folder(Path(source))
    return clip.to(device)


def _load_folder(folder: Path) -> Clip:
    if not (folder / CONFIG).is_file() and (folder / OTHER_CONFIG).is_file():
        clip = load_transformers(folder)
        clip.source = folder.resolve().name
        return clip
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no CLIP: it needs {CONFIG} and {WEIGHTS}, or what transformers writes"
        )
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    statistics = described["preprocess_cfg"]
    clip = build_clip(described["model_cfg"], statistics["mean"], statistics["std"])
    clip.source = folder.resolve().name
    weights = load_file(folder / WEIGHTS)
    clip.exact = any(value.dtype == torch.float32 for value in weights.values())
    load_strictly(clip.towers.model, {name: value.float() for name, value in weights.items()}, str(folder))
    return clip


def save_clip(clip: Clip, folder: str | Path) -> None:
    """Writes a folder that `load_clip` reads: as OpenCLIP's `local-dir:` does, or, of a CLIP of
    transformers, as its `from_pretrained` does. The weights are at half precision, but those of an
    `exact` CLIP only if that rounds none of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = _stored(clip)
    if isinstance(clip.towers, TransformersTowers):
        _save_transformers(clip, weights, folder)
        return
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    described = {
        "model_cfg": clip.towers.config,
        "preprocess_cfg": {"size": clip.image_size, "mode": "RGB", "mean": mean, "std": std,
                           "interpolation": "bicubic", "resize_mode": "squash"},
    }  # fmt: skip
    with written_aside(folder / WEIGHTS) as aside:
        save_file(weights, aside, metadata={"format": "pt"})
    with written_aside(folder / CONFIG) as aside:
        aside.write_text(json.dumps(described, indent=2), encoding="utf-8")


def _stored(clip: Clip) -> dict[str, Tensor]:
    """The weights as they are saved."""
    state = clip.towers.model.state_dict()
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    floats = [value for value in weights.values() if value.is_floating_point()]
    if clip.exact and not all(torch.equal(value.half().to(value.dtype), value) for value in floats):
        return weights
    return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}


def _save_transformers(clip: Clip, weights: dict[str, Tensor], folder: Path) -> None:
    """Written beside the folder's files, which then take their places, what describes them last."""
    aside = Path(mkdtemp(prefix=".clip.", dir=folder))
    try:
        tokenizer = clip.towers.tokenizer
        if hasattr(tokenizer, "backend_tokenizer"):  # forget the last texts' padding, which it would write
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(aside)
        with quiet():
            clip.towers.model.save_pretrained(aside, state_dict=weights)
        if clip.image_size is not None:
            _image_processor(clip).save_pretrained(aside)
        (folder / CONFIG).unlink(missing_ok=True)  # it would say that the folder holds another CLIP
        for file in sorted(aside.iterdir(), key=lambda file: (file.name == OTHER_CONFIG, file.name)):
            with written_aside(folder / file.name) as place:
                os.replace(file, place)
    finally:
        shutil.rmtree(aside)


def _image_processor(clip: Clip):
    from transformers import CLIPImageProcessor

    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    side = clip.image_size
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=mean,
        image_std=std,
    )
