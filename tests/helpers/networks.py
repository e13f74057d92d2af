"""Networks in which every parameter has a say, and when two outputs are the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter is zero, so that every part has a say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)
