"""Weights shared out among the processes: each keeps a part of every one, and lends it when it is due.

Fully sharded data parallelism (Zhao et al. 2023, arXiv:2304.11277), as ``torch.distributed.fsdp`` has it. A
state is gathered when it is saved, so that any number of processes can go on from it, with or without shards.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unclip.config import ConfigError
from unclip.nets.blocks import Unit


def shard(stage: nn.Module, device: torch.device, bf16: bool = False) -> None:
    """Share out the weights of a stage, in place: by the units of its networks, which alone are whole at a
    time; then what is left of each network, since sampling calls a network without its stage.

    bf16: whether it computes in bfloat16; then the units' weights are lent in that precision.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if getattr(stage.config, "last_network", False):
        raise ConfigError(
            "a stage with last_network cannot be shared out, since not every step calls both "
            "of its networks; train it without shard"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # On a CPU norms want weights of their input's precision, which is not always the same.
    lent = torch.bfloat16 if bf16 and device.type == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=lent, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in stage.modules():
        if isinstance(module, Unit):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    for network in stage.children():
        fully_shard(network, mesh=mesh)
    fully_shard(stage, mesh=mesh)
    # Who is called first counts as the root for good. Sampling calls a network, which must not be it.
    stage._get_fsdp_state()._lazy_init()


def whole(value: object, keep: bool = True) -> object:
    """A tensor, or all that are in a dict or list, gathered from the processes and brought to the CPU.

    All processes must call it alike. keep: False where the result is not needed; there it is empty.
    """
    if isinstance(value, dict):
        return {key: whole(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item, keep) for item in value]
    if not isinstance(value, Tensor):
        return value
    value = value.full_tensor() if isinstance(value, DTensor) else value.detach()
    return value.cpu() if keep else None


def parted(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as ``like`` is kept: this process's part of it, if ``like`` is shared out.

    Else a copy, whose memory is laid out like that of ``like``: fused optimisers rely on it.
    """
    if value.shape != like.shape:
        return value.clone()
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device).contiguous(), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """``module.load_state_dict`` from a whole state."""
    ours = module.state_dict()
    module.load_state_dict(
        {
            key: parted(value, ours[key]) if isinstance(ours.get(key), DTensor) else value
            for key, value in state.items()
        }
    )


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """``optimizer.load_state_dict`` from a whole state, which is copied."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    parts = {
        number: {
            key: parted(value, weights[number]) if isinstance(value, Tensor) else value
            for key, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def clip_gradient(weights: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients to a norm of ``limit`` at most; returns the norm that they had, over all shards."""
    weights = [weight for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return norm
