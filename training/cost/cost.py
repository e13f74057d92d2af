"""What one optimisation costs, found out on the meta device: parameters, bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unclip.clip import Clip
from unclip.config import ConfigError
from unclip.nets.blocks import Unit
from unclip.resources.peak import as_on_gpu, peak_activations
from unclip.resources.weightless import parameters


@dataclass(frozen=True)
class Cost:
    """Of one optimisation on one of some GPUs: FLOPs are of one picture, sizes in bytes."""

    name: str
    pictures: int  # that the recipe sees
    batch_size: int  # of a step, over all GPUs
    accumulate: int
    micro_batch: int  # of a forward pass on one GPU
    parameters: int  # that are trained
    weights: int
    ema: int  # of the moving average, if there is one
    copies: int  # of the weights in bfloat16, which autocast makes and keeps in a step
    block: int  # of the largest unit that FSDP gathers, in the precision of arithmetic
    outside: int  # of what is in no unit
    activations: int  # most that is alive at once besides, in a forward and backward pass
    activations_checkpointed: int
    can_shard: bool  # whether the program offers FSDP
    forward: int
    backward: int
    frozen: int  # FLOPs of what is not trained: CLIP's encoders
    frozen_weights: int
    checkpointing: bool = False  # what the recipe says
    shard: bool = False  # likewise
    notes: list[str] = field(default_factory=list)


def share(batch_size: int, gpus: int, accumulate: int = 1) -> int:
    """Pictures that a GPU handles in one forward pass."""
    if batch_size % (gpus * accumulate):
        raise ConfigError(f"batch_size {batch_size} does not divide by {gpus} GPUs x accumulate {accumulate}")
    return batch_size // (gpus * accumulate)


def count_flops(run: Callable[[], object]) -> int:
    """Of the matrix products and convolutions in ``run``; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def step_flops(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """Of a forward pass alone, and of the backward pass that follows it."""
    losses: list[Tensor] = []
    forward = count_flops(lambda: losses.append(loss()))
    return forward, count_flops(losses.pop().backward)


def step_bytes(module: nn.Module, loss: Callable[[], Tensor], bf16: bool, checkpointed: bool) -> int:
    """The most that a forward and backward pass allocate, besides the gradients that they leave behind.

    module: what is trained, on the meta device.
    checkpointed: its units are computed again in the backward pass.
    """
    autocast = torch.bfloat16 if bf16 else None
    for weight in module.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    units = [part for part in module.modules() if isinstance(part, Unit)]
    for unit in units:
        unit.checkpointing = checkpointed
        unit.compute = partial(_on_gpu, unit.compute, autocast)
    try:
        return peak_activations(lambda: loss().backward(), autocast)
    finally:
        module.zero_grad(set_to_none=True)
        for unit in units:
            del unit.compute  # its own again
            unit.checkpointing = False


def _on_gpu(compute: Callable[..., Tensor], autocast: torch.dtype | None, *inputs: object) -> Tensor:
    with as_on_gpu(autocast):
        return compute(*inputs)


def copied_bytes(module: nn.Module, bf16: bool) -> int:
    """Of the bfloat16 copies of matrices and kernels."""
    return sum(2 * p.numel() for p in module.parameters() if p.dim() > 1) if bf16 else 0


def sizes_of(module: nn.Module, bf16: bool) -> dict[str, int]:
    """What is to be known of a module's weights for ``Cost``."""
    blocks = [parameters(part) for part in module.modules() if isinstance(part, Unit)] or [0]
    count = parameters(module)
    return {
        "parameters": count,
        "weights": 4 * count,
        "copies": copied_bytes(module, bf16),
        "block": (2 if bf16 else 4) * max(blocks),
        "outside": 4 * (count - sum(blocks)),
    }


@torch.no_grad()
def image_flops(clip: Clip, side: int) -> int:
    """FLOPs of encoding one picture of so many pixels a side."""
    picture = torch.zeros(1, 3, side, side, device="meta")
    return count_flops(lambda: clip.encode_image(picture))


@torch.no_grad()
def text_flops(clip: Clip) -> int:
    """FLOPs of encoding one text of the full length."""
    ids = torch.zeros(1, clip.context_length, dtype=torch.int64, device="meta")
    whole = torch.ones(1, clip.context_length, dtype=torch.bool)  # not on meta: its length is asked for
    return count_flops(lambda: clip.towers.text(ids, whole))
