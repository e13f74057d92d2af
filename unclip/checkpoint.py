"""Checkpoints: one safetensors file whose header says everything that is needed to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config, parse_config
from .files import written_aside
from .resources.devices import align, aligned, in_precision
from .resources.weightless import weightless

M = TypeVar("M", bound=torch.nn.Module)
FORMAT = 1  # the version of the header's form; raised when an old file would be misread


class CheckpointError(ValueError):
    """A file that is missing, damaged, of another kind, or of another version."""


def save_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping,
    dtype: torch.dtype | None = None,
    **facts: object,
) -> None:
    """Write ``tensors`` with a self-describing header.

    kind:   what the file holds ("prior", "decoder", "upsampler", ...).
    config: the stage's whole configuration, JSON-able.
    dtype:  storage type of floating tensors (None = as they are); they load as float32.
    facts:  anything else worth keeping (pictures seen, source, versions), JSON-able.
    """

    def stored(value: Tensor) -> Tensor:
        value = value.detach().cpu().contiguous()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    header = {"format": FORMAT, "kind": kind, "config": config, **facts}
    with written_aside(path) as aside:
        save_file(
            {key: stored(value) for key, value in tensors.items()},
            aside,
            metadata={"unclip": json.dumps(header)},
        )


def is_ours(path: str | Path) -> bool:
    """Whether a safetensors file describes itself as our checkpoints do; a damaged one counts as ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return "unclip" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def read_header(path: str | Path, kind: str | None = None) -> dict:
    """The header of a checkpoint; raises ``CheckpointError`` if it is not ours, or not of ``kind``."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("unclip")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    if text is None:
        raise CheckpointError(f"{path} was not written by unclip: its header has no description")
    try:
        header = json.loads(text)
        version, held, _ = header["format"], header["kind"], header["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error!r}") from None
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version reads {FORMAT}")
    if kind is not None and held != kind:
        raise CheckpointError(f"{path} holds a {held}, not a {kind}")
    return header


def load_checkpoint(
    path: str | Path,
    kind: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, Tensor], dict]:
    """Read ``(tensors, header)``, each tensor once, to where it stays: in aligned memory.

    dtype: of weights, as ``memory.in_precision`` says; other floating tensors come back as float32.
    """
    header = read_header(path, kind)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {key: aligned(in_precision(file.get_tensor(key), dtype)) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return tensors, header


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill ``module``; a missing, unexpected or misshapen tensor fails, and all are listed at once.

    A module that was built on the meta device takes the tensors themselves, uncopied if they lie aligned.
    """
    target = module.state_dict()
    missing = sorted(set(target) - set(tensors))
    unexpected = sorted(set(tensors) - set(target))
    misshapen = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(target[key].shape)}"
        for key in sorted(set(target) & set(tensors))
        if tensors[key].shape != target[key].shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{source} does not fit the network:\n  missing: {missing}\n"
            f"  unexpected: {unexpected}\n  of another shape: {misshapen}"
        )
    module.load_state_dict(tensors, strict=True, assign=any(value.is_meta for value in target.values()))
    align(module)


def rebuilt(
    made: type[M], config: type[Config], tensors: Mapping[str, Tensor], header: Mapping, source: str
) -> M:
    """The module that a checkpoint of ours holds, strictly; eval mode, no gradients.

    made, config: its class, which takes a configuration alone, and the class of that.

    It is built on the meta device and takes the tensors as they are. ``facts`` is what else the header says.
    """
    read = parse_config(config, header["config"], source=source)
    with weightless():
        module = made(read)
    load_strictly(module, tensors, source)
    module.facts = {k: v for k, v in header.items() if k not in ("format", "kind", "config")}
    return module.eval().requires_grad_(False)
