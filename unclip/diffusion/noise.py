"""Random numbers that depend on a picture's seed and on nothing else."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def fold(seed: int, *numbers: int) -> int:
    """Mixes integers, such as (seed, rank, step), into one seed in 0..2^63 - 1, for ever the same.

    TypeError for what is no integer.
    """
    text = ",".join(str(operator.index(number)) for number in (seed, *numbers))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Noise:
    """One stream of Gaussian noise per picture, so that a picture is the same in any batch.

    The streams are drawn on the CPU, which makes them the same on every device; or, as ``drawn_on``
    says, where they are needed, which is faster.
    """

    def __init__(
        self, seeds: Sequence[int], device: str | torch.device = "cpu", drawn_on: str | torch.device = "cpu"
    ):
        self.device = device
        self.generators = [torch.Generator(drawn_on).manual_seed(fold(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """The next noise of every picture: [N, *shape] float32, where shape is that of one."""
        noise = [torch.randn(tuple(shape), generator=g, device=g.device) for g in self.generators]
        return torch.stack(noise).to(self.device)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """The next uniform numbers in [0, 1) of every picture: [N, *shape] float32."""
        drawn = [torch.rand(tuple(shape), generator=g, device=g.device) for g in self.generators]
        return torch.stack(drawn).to(self.device)


class Begun(Noise):
    """Noise whose first draw is given: [N, ...]; what is drawn after it is of the streams, as always."""

    def __init__(self, first: Tensor, seeds: Sequence[int], device: str | torch.device = "cpu"):
        super().__init__(seeds, device)
        self.first: Tensor | None = first

    def __call__(self, shape: Sequence[int]) -> Tensor:
        drawn, first, self.first = super().__call__(shape), self.first, None
        return drawn if first is None else first.to(drawn)


Random = torch.Generator | Noise | None  # one stream for a batch, one a picture, or torch's own


def randn(shape: Sequence[int], device: torch.device | str, source: Random = None) -> Tensor:
    """Gaussian noise of a batch, [N, ...] float32; of streams, there must be N."""
    if isinstance(source, Noise):
        return source(shape[1:]).to(device)
    return torch.randn(tuple(shape), device=device, generator=source)


def rand(shape: Sequence[int], device: torch.device | str, source: Random = None) -> Tensor:
    """Uniform numbers in [0, 1) of a batch, [N, ...] float32; of streams, there must be N."""
    if isinstance(source, Noise):
        return source.uniform(shape[1:]).to(device)
    return torch.rand(tuple(shape), device=device, generator=source)
