"""Tensors of public files: read safely, renamed by rules, and put into a network strictly."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import CheckpointError, no_weights

Rules = Mapping[str, str]
"""Regular expressions over whole names -> our names; the first that matches counts."""
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where a training program keeps the weights


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one that PyTorch wrote (`.pt`, `.ckpt`, `.th`, `.bin`).

    They are mapped from the disk, not copied. Nothing in the file is executed. Raises CheckpointError,
    which names the file, for one that is absent, cut short, damaged, or holds more than tensors.
    """
    path = Path(path)
    try:
        reason = no_weights(path)
    except ValueError as error:  # nothing is there, or no regular file
        raise CheckpointError(str(error)) from None
    if reason:
        raise CheckpointError(f"{path} cannot be read: {reason}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: it is damaged or cut short ({error})") from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds something else than named tensors")
    return dict(content)


def _unpickled(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(2)
    zipped, pickled = start == b"PK", start[:1] == b"\x80"
    try:
        if zipped:  # PyTorch's reader looks at no checksum
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a damaged pickle seems to be
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can lead to any
        lines = str(error).strip().splitlines() or [type(error).__name__]
        code = [line.strip() for line in lines if re.search("GLOBAL|Unsupported", line)]
        if isinstance(error, UnpicklingError) and code and (zipped or pickled):
            raise CheckpointError(
                f"{path} is refused: it holds more than tensors, and opening such a file "
                f"can run code ({code[0]})"
            ) from None
        raise CheckpointError(f"{path} cannot be read: it is damaged or cut short ({lines[0]})") from None


def renamed(tensors: Mapping[str, Tensor], rules: Rules, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names that no rule knows.

    Raises CheckpointError when two tensors would take one name. source: says where they are from.
    """
    compiled = [(re.compile(pattern), ours) for pattern, ours in rules.items()]
    named: dict[str, Tensor] = {}
    unused = []
    for name, value in tensors.items():
        match = next(((m, ours) for pattern, ours in compiled if (m := pattern.fullmatch(name))), None)
        if match is None:
            unused.append(name)
            continue
        ours = match[0].expand(match[1])
        if ours in named:
            raise CheckpointError(f"{source} holds {ours} twice, once as {name}")
        named[ours] = value
    return named, unused


def linear(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution, [out, in, 1] or [out, in, 1, 1], as that of a linear layer."""
    return weight.flatten(1) if weight.dim() > 2 and set(weight.shape[2:]) == {1} else weight
