"""CLIPs in folders: built, saved and loaded again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import CheckpointError, load_strictly, no_weights
from ..config import ConfigError, looked_up
from ..files import written_aside
from ..nets.clip import ClipConfig
from ..resources.devices import as_device
from ..resources.weightless import weightless
from .byte_pairs import byte_pairs
from .description import MEAN, STD, plain_config, read_description, statistics_of, to_fetch
from .encoders import Clip
from .identity import digest_of, weights_of
from .public import OTHER_CONFIG, fresh_open_clip, load_open_clip, load_transformers, named_config, quiet
from .towers import OpenClipTowers, PlainTowers, TransformersTowers

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
DIGEST = "digest"  # what WEIGHTS says of itself, as ``Clip.identity`` does


def build_clip(
    model_cfg: dict | str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, downloads: bool = False
) -> Clip:
    """A CLIP with random weights, from an OpenCLIP `model_cfg` or the name of one.

    downloads: as in ``load_clip``. Raises ValueError for an unknown name, and for what cannot be built.
    """
    name, config = (model_cfg, named_config(model_cfg)) if isinstance(model_cfg, str) else ("clip", model_cfg)
    return Clip(_towers(config, name, downloads), mean, std, name)


def _towers(model_cfg: object, source: str, downloads: bool) -> PlainTowers | OpenClipTowers:
    config = plain_config(model_cfg, source)
    if isinstance(config, ClipConfig):
        return PlainTowers(config, byte_pairs())
    if not downloads and (part := to_fetch(config)):
        raise ConfigError(
            f"{source} would fetch a part of its CLIP from the network ({part}); if you trust it, allow "
            "that: --allow-downloads, or downloads=True"
        )
    return fresh_open_clip(config, source)


def load_clip(source: str | Path, device: str | torch.device = "cpu", downloads: bool = False) -> Clip:
    """`open_clip:NAME@tag-or-checkpoint`, `transformers:ID-or-folder`, or a folder of `save_clip`.

    source:    who passes such a name asks for what it says, which is fetched if it is not here. A Path is
               always a folder, whatever it is called.
    downloads: whether what a folder's description names besides (a tower of timm, a tokenizer of the hub)
               may be fetched, too. Without it a folder reaches no network.

    Raises CheckpointError for a folder that is none, is damaged or does not fit its description, ConfigError
    for a description that no CLIP can have or that asks for downloads, ValueError for an unknown name or
    device.
    """
    device = as_device(device)
    kind, _, name = ("" if isinstance(source, Path) else source).partition(":")
    if kind == "open_clip" and name:
        clip = load_open_clip(name)
    elif kind == "transformers" and name:
        clip = load_transformers(name)
    else:
        clip = _load_folder(Path(source), downloads)
    return clip.to(device)


def is_on_hub(source: str) -> bool:
    """Whether ``load_clip(source)`` fetches what anybody can publish, and not one that OpenCLIP lists."""
    kind, _, name = source.partition(":")
    if kind == "open_clip":
        return name.startswith("hf-hub:")
    return kind == "transformers" and not Path(name).is_dir()


def _load_folder(folder: Path, downloads: bool) -> Clip:
    if not (folder / CONFIG).is_file() and (folder / OTHER_CONFIG).is_file():
        clip = load_transformers(folder)
        clip.source = folder.resolve().name
        return clip
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no CLIP: it needs {CONFIG} and {WEIGHTS}, or what transformers writes"
            f"{looked_up(folder)}"
        )
    described, source = read_description(folder / CONFIG), str(folder)
    weights, digest = _read_weights(folder / WEIGHTS)
    towers = _filled(described.get("model_cfg"), weights, source, downloads)
    exact = any(value.dtype == torch.float32 for value in weights.values())
    clip = Clip(towers, *statistics_of(described), folder.resolve().name, exact)
    if digest is not None and digest != weights_of(clip.identity):
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: its weights are not those that were written; copy it again"
        )
    return clip


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the digest that they were written with."""
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
            return {name: file.get_tensor(name) for name in file.keys()}, digest
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {no_weights(path) or error}") from None


def _filled(
    model_cfg: object, weights: dict[str, Tensor], source: str, downloads: bool
) -> PlainTowers | OpenClipTowers:
    """Towers with these weights; first without memory, so that none is taken for what does not fit."""
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    with weightless():
        towers = _towers(model_cfg, source, downloads)
    load_strictly(towers.model, floats, source)
    if isinstance(towers, OpenClipTowers):  # whose constants were not computed
        towers = _towers(model_cfg, source, downloads)
        load_strictly(towers.model, floats, source)
    return towers


def save_clip(clip: Clip, folder: str | Path) -> None:
    """Writes a folder that `load_clip` reads: as OpenCLIP's `local-dir:` does, or, of a CLIP of
    transformers, as its `from_pretrained` does. The weights are at half precision, but those of an
    `exact` CLIP only if that rounds none of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, towers = _stored(clip), clip.towers
    if isinstance(towers, TransformersTowers):
        _save_transformers(clip, towers, weights, folder)
        return
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    described = {
        "model_cfg": towers.config,
        "preprocess_cfg": {"size": clip.image_size, "mode": "RGB", "mean": mean, "std": std,
                           "interpolation": "bicubic", "resize_mode": "squash"},
    }  # fmt: skip
    with written_aside(folder / WEIGHTS) as aside:
        save_file(weights, aside, metadata={DIGEST: digest_of(weights, weights.__getitem__)})
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


def _save_transformers(
    clip: Clip, towers: TransformersTowers, weights: dict[str, Tensor], folder: Path
) -> None:
    """Written beside the folder's files, which then take their places, what describes them last."""
    aside = Path(mkdtemp(prefix=".clip.", dir=folder))
    try:
        tokenizer = towers.tokenizer
        if hasattr(tokenizer, "backend_tokenizer"):  # forget the last texts' padding, which it would write
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(aside)
        with quiet():
            towers.model.save_pretrained(aside, state_dict=weights)
        if clip.image_size is not None:
            _image_processor(clip, clip.image_size).save_pretrained(aside)
        (folder / CONFIG).unlink(missing_ok=True)  # it would say that the folder holds another CLIP
        for file in sorted(aside.iterdir(), key=lambda file: (file.name == OTHER_CONFIG, file.name)):
            with written_aside(folder / file.name) as place:
                os.replace(file, place)
    finally:
        shutil.rmtree(aside)


def _image_processor(clip: Clip, side: int) -> CLIPImageProcessor:
    from transformers import CLIPImageProcessor

    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=mean,
        image_std=std,
    )
