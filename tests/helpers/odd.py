"""Tensors, files and folders of weights that do not lie at multiples of 64 bytes."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from training.run import saves as state

WIDTH = 64


def lies(value: Tensor) -> int:
    """How many bytes after a multiple of 64 a tensor begins, or this process's part of one."""
    return (value.to_local() if hasattr(value, "to_local") else value).data_ptr() % WIDTH


def odd(value: Tensor, by: int = 8) -> Tensor:
    """The same numbers with the same strides, ``by`` bytes after a multiple of 64."""
    room = torch.empty(value.untyped_storage().nbytes() + 2 * WIDTH, dtype=torch.uint8)
    start = -room.data_ptr() % WIDTH + by
    moved = torch.empty(0, dtype=value.dtype).set_(
        room.untyped_storage(), start // value.element_size(), value.shape, value.stride()
    )
    return moved.copy_(value.detach())


def displace(module: nn.Module, by: int = 8) -> nn.Module:
    """The module, its weights and buffers where ``odd`` puts them."""
    for value in chain(module.parameters(), module.buffers()):
        value.data = odd(value.data, by)
    return module


def pad(path: Path, spaces: int) -> None:
    """The same safetensors file with a header that is longer: its tensors lie further on."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * spaces
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def shift(path: Path, by: int = 4) -> None:
    """``path`` is a safetensors file: its first tensor begins ``by`` bytes after a multiple of 64."""
    length = int.from_bytes(path.read_bytes()[:8], "little")
    pad(path, (by - 8 - length) % WIDTH)
    assert any(map(lies, load_file(path).values())), path


def shift_all(folder: Path) -> Path:
    """Every safetensors file in the folder is shifted; there is one at least."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    for path in files:
        shift(path)
    return folder


def save_shifted(tensors: dict[str, Tensor], path: Path) -> Path:
    """A file of PyTorch's whose tensors begin one number after their memory does."""
    shifted = {
        name: torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
        for name, value in tensors.items()
    }
    torch.save(shifted, path)
    assert all(lies(value) for value in torch.load(path, mmap=True).values() if value.numel())
    return path


def shift_save(out: Path) -> None:
    """Make the run's save again with tensors that begin one number after their memory does."""

    def shifted(value: Tensor) -> Tensor:
        return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)

    files = {path.name: state.load(path) for path in (out / "state").iterdir() if path.name != state.MANIFEST}
    facts = json.loads((out / "state" / state.MANIFEST).read_text())
    del facts["files"]
    state.write(
        out, {name: tree_map_only(Tensor, shifted, content) for name, content in files.items()}, **facts
    )


def odd_places(*parts: object) -> list[int]:
    """Of all tensors in modules and in optimisers' memories, how far they lie from where they should."""
    tensors = [
        value
        for part in parts
        if isinstance(part, nn.Module)
        for value in (*part.parameters(), *part.buffers())
    ]
    remembered = [
        moments
        for part in parts
        if isinstance(part, torch.optim.Optimizer)
        for moments in part.state.values()
    ]
    tensors += [value for moments in remembered for value in moments.values() if isinstance(value, Tensor)]
    assert not any(isinstance(part, torch.optim.Optimizer) for part in parts) or len(remembered) > 1
    return [place for place in map(lies, tensors) if place]
