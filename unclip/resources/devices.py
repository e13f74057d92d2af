"""Devices and precision: what the machine at hand is good at, where weights lie, and lending a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .weightless import tensors_of


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def as_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None = ``default_device``. ``ValueError`` for one that is not here."""
    if device is None:
        return default_device()
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, bool]  # which older torch cannot tell
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that are free there, as the system says; 2 GiB where it does not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2 << 30


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """bfloat16 autocast where the hardware has it (None), always (True) or never (False)."""
    use = has_fast_bf16(device) if enabled is None else enabled
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use)


M = TypeVar("M", bound=nn.Module)
ALIGNMENT = 64  # bytes: where torch's own memory begins, and as wide as any vector register


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
    dtype = known.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in known.values():
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


def laid_out(value: Tensor) -> Tensor:
    """A weight as networks keep it: kernels of convolutions in channels_last, for which they are fastest."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def align(module: M) -> M:
    """Bring all weights and buffers of a module to aligned memory (``aligned``), in place; returns it.

    Every way of loading ends here. Those that lie well stay where they are. The others are moved one after
    another: never a second copy of all, unless somebody else keeps the first.
    """
    _change(module, aligned)
    return module


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a module's weights to a device and a precision, one after another: never a second copy of all.

    They are ``laid_out`` and ``aligned`` there.
    """
    _change(module, lambda value: aligned(laid_out(in_precision(value, dtype).to(device))))


def _change(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put ``change(value)`` in the place of each weight and buffer; those that were one tensor under several
    names, or looked at the same memory alike, still are and do.
    """
    tied: dict[tuple, list[Tensor]] = {}
    for value in tensors_of(module):
        where = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride())
        tied.setdefault((*where, value.dtype), []).append(value)
    for values in tied.values():
        before = values[0].data
        after = change(before)
        if after is not before:
            for value in values:
                value.data = after


@contextmanager
def lent(modules: Iterable[nn.Module | None], device: torch.device) -> Iterator[None]:
    """The modules are on ``device`` inside the block; their own weights stay where they are, and are back
    after.

    For models that do not fit on a GPU as a whole. Nothing is copied back: the block must not train.
    """
    stores: list[dict[str, Any]] = [
        store
        for module in modules
        if module is not None
        for part in module.modules()
        for store in (part._parameters, part._buffers)
    ]
    own: list[tuple[dict[str, Any], str, Tensor]]
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
