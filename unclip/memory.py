"""Memory: networks that are built without any, where weights lie, how much a computation takes, and lending
a device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

M = TypeVar("M", bound=nn.Module)

ALIGNMENT = 64  # bytes: where torch's own memory begins, and as wide as any vector register


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
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return {"tensor": args[0] if args else None, **(kwargs or {})}["tensor"]
        return func(*args, **(kwargs or {}))


def held_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers; on the meta device, of what they would take."""
    return sum(value.numel() * value.element_size() for value in _tensors(module))


def in_precision(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight at ``dtype``: matrices and kernels alone, which are nearly all of a network.

    What has one dimension (biases, norms, statistics) stays float32, as autocast computes it.
    """
    if not value.is_floating_point():
        return value
    return value.to(dtype if value.dim() > 1 else torch.float32)


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """float32 or bfloat16, of weights; ``ValueError`` for another."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    dtype = known.get(name, name) if isinstance(name, str) else name
    if dtype not in known.values():
        raise ValueError(f"weights are kept as {' or '.join(known)}, not as {name}")
    return dtype


def aligned(value: Tensor) -> Tensor:
    """``value`` itself if it begins at a multiple of ``ALIGNMENT`` bytes, else a copy that does, with the
    same strides (contiguous, if those had gaps).

    Kernels add in another order at other addresses. A tensor that is mapped from a file lies where the
    length of the file's header puts it, so that without this a picture's last bits would depend on that.
    """
    if value.is_meta or value.data_ptr() % ALIGNMENT == 0:  # empty ones lie at 0
        return value
    return value.detach().clone()


def align(module: M) -> M:
    """Bring all weights and buffers of a module to aligned memory (``aligned``), in place; returns it.

    Every way of loading ends here. Those that lie well stay where they are. The others are moved one after
    another: never a second copy of all, unless somebody else keeps the first.
    """
    _change(module, aligned)
    return module


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a module's weights to a device and a precision, one after another: never a second copy of all.

    They are aligned there, as in ``align``.
    """
    _change(module, lambda value: aligned(in_precision(value, dtype).to(device)))


def _change(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put ``change(value)`` in the place of each weight and buffer; those that were one tensor under several
    names, or looked at the same memory alike, still are and do.
    """
    tied: dict[tuple, list[Tensor]] = {}
    for value in _tensors(module):
        where = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride())
        tied.setdefault((*where, value.dtype), []).append(value)
    for values in tied.values():
        before = values[0].data
        after = change(before)
        if after is not before:
            for value in values:
                value.data = after


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


@contextmanager
def lent(modules: Iterable[nn.Module | None], device: torch.device) -> Iterator[None]:
    """The modules are on ``device`` inside the block; their own weights stay where they are, and are back
    after.

    For models that do not fit on a GPU as a whole. Nothing is copied back: the block must not train.
    """
    stores = [store for module in modules if module is not None for part in module.modules()
              for store in (part._parameters, part._buffers)]
    own = [(store, name, value) for store in stores for name, value in store.items() if value is not None]
    try:
        copies: dict[int, Tensor] = {}  # a tensor with two names is moved once
        for store, name, value in own:
            if id(value) not in copies:
                copies[id(value)] = value.detach().to(device, non_blocking=True)
            copy = copies[id(value)]
            store[name] = nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy
        yield
    finally:
        for store, name, value in own:
            store[name] = value


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that come into being while it is on: ``now``, and their ``peak``.

    Each counts until it is freed. What was there before does not count, nor what an operation takes for
    itself. Works on any device, meta among them, and through a backward pass.

    only: the type of device that counts, such as "cpu"; None = all.
    """

    def __init__(self, only: str | None = None) -> None:
        super().__init__()
        self.only = only
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in self._storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in self._storages(out):
            if storage._cdata not in given:
                self._note(storage)
        return out

    def _storages(self, tree: object) -> list[torch.UntypedStorage]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)
                and leaf.layout == torch.strided and self.only in (None, leaf.device.type)]

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: weakref.ref) -> None:
            if self._alive.pop(key, None) is not None:
                self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_activations(call: Callable[[], object], autocast: torch.dtype | None = None) -> int:
    """The most bytes that are alive at once of all that ``call`` allocates; what it returns included.

    On meta tensors it computes nothing. Gradients count, if ``call`` makes any. Attention is counted as
    fused kernels have it: no matrix of all pairs.

    autocast: the precision of a GPU's autocast, which meta tensors do not have themselves; None = none.
    """
    with LiveBytes() as live, as_on_gpu(autocast):
        kept = call()
        del kept
    return live.peak


@contextmanager
def as_on_gpu(autocast: torch.dtype | None = None) -> Iterator[None]:
    """Meta tensors are treated as on a GPU: fused attention, and the casts of ``autocast``, if any.

    Not in a backward pass, which torch shields from it: what is computed there again must enter it itself.
    """
    with _Fused(), nullcontext() if autocast is None else _Autocast(autocast):
        yield


class _Attention(torch.autograd.Function):
    """Attention's memory, not its result: the output, and for the backward pass what fused kernels keep."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])


class _Fused(TorchFunctionMode):
    """Puts ``_Attention`` in the place of attention on meta tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """What CUDA's autocast casts of the operations that our networks use."""

    LOW = {torch.conv2d, torch.conv1d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.einsum,
           F.scaled_dot_product_attention}
    FULL = {F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm, torch.softmax, Tensor.softmax,
            F.softmax}

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        dtype = self.dtype if func in self.LOW else torch.float32 if func in self.FULL else None
        if dtype is not None:
            args, kwargs = tree_map_only(
                Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))
