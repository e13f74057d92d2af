"""How much memory a computation takes, counted on tensors that hold nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


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

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        before = {storage._cdata for storage in self._storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in self._storages(out):
            if storage._cdata not in before:
                self._note(storage)
        return out

    def _storages(self, tree: object) -> list[torch.UntypedStorage]:
        return [
            leaf.untyped_storage()
            for leaf in tree_leaves(tree)
            if isinstance(leaf, Tensor)
            and leaf.layout == torch.strided
            and self.only in (None, leaf.device.type)
        ]

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
        result = call()
        del result
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
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        q, k, v, *_ = saved
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Fused(TorchFunctionMode):
    """Puts ``_Attention`` in the place of attention on meta tensors."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """What CUDA's autocast casts of the operations that our networks use."""

    LOW = {torch.conv2d, torch.conv1d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__,
           torch.einsum, F.scaled_dot_product_attention}  # fmt: skip
    FULL = {F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm,
            torch.softmax, Tensor.softmax, F.softmax}  # fmt: skip

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        dtype = self.dtype if func in self.LOW else torch.float32 if func in self.FULL else None
        if dtype is not None:
            args, kwargs = tree_map_only(
                Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs or {})
            )
        return func(*args, **(kwargs or {}))
