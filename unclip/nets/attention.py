"""Attention over keys that may be masked: the one place that knows SDPA and xformers."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Backend = Literal["sdpa", "xformers"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: Backend = "sdpa") -> Tensor:
    """softmax(q k' / sqrt(D)) v for each head (Vaswani et al. 2017, eq. 1).

    q: [N, Lq, H, D]; k, v: [N, Lk, H, D]. Returns [N, Lq, H * D], the heads side by side.
    mask: bool, True = attend. [N, Lk] for keys, or [N or 1, 1, Lq, Lk] for pairs. Every query
        needs at least one key.
    backend: "sdpa" (PyTorch's own) or "xformers", which is imported only when it is chosen.

    Raises ImportError when xformers is chosen and not installed, ValueError for another backend.
    """
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]  # [N, 1, 1, Lk]
    if backend == "sdpa":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [N, H, L, D]
        # On a CPU the backward pass of the fused kernel is several times slower in bfloat16.
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
        out = _plain(q, k, v, mask) if slow else F.scaled_dot_product_attention(q, k, v, mask)
        out = out.transpose(1, 2)  # [N, Lq, H, D]
    elif backend == "xformers":
        out = _xformers(q, k, v, mask)  # [N, Lq, H, D]
    else:
        raise ValueError(f"unknown attention backend {backend!r}: choose 'sdpa' or 'xformers'")
    return rearrange(out, "n l h d -> n l (h d)")  # [N, Lq, H * D]


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weight = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)  # [N, H, Lq, Lk]
    if mask is not None:
        weight = weight.masked_fill(~mask, float("-inf"))
    return weight.softmax(dim=-1) @ v  # [N, H, Lq, D]


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(
            "attention 'xformers' was chosen but xformers cannot be imported: "
            "pip install xformers, or choose attention 'sdpa'"
        ) from error
    bias = None if mask is None else _bias(mask, q, k)  # [N, H, Lq, Lk]
    return memory_efficient_attention(q, k, v, attn_bias=bias)


def _bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Additive mask; xformers wants its rows to start at multiples of 8 elements."""
    n, queries, heads, _ = q.shape
    keys = k.shape[1]
    bias = torch.zeros(n, 1, queries, -(-keys // 8) * 8, dtype=q.dtype, device=q.device)
    bias[..., :keys].masked_fill_(~mask, float("-inf"))  # [N, 1, Lq, Lk padded]
    return bias[..., :keys].expand(n, heads, queries, keys)
