"""Networks that are built without any memory, and what they would take of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def parameters(module: nn.Module) -> int:
    """How many numbers a module holds that are learned."""
    return sum(weight.numel() for weight in module.parameters())


@contextmanager
def weightless() -> Iterator[None]:
    """Networks that are built inside are on the meta device: no memory, and nothing drawn at random.

    There drawing would only have PyTorch import its compiler, which takes seconds.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return {"tensor": args[0] if args else None, **(kwargs or {})}["tensor"]
        return func(*args, **(kwargs or {}))


def held_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers; on the meta device, of what they would take."""
    return sum(value.numel() * value.element_size() for value in tensors_of(module))


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
