"""Random numbers that depend on a picture's seed and on nothing else."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits


def fold(seed: int, *numbers: int) -> int:
    """Mixes integers, such as (seed, rank, step), into one seed in 0..2^63 - 1, for ever the same.

    TypeError for what is no integer.
    """
    text = ",".join(str(operator.index(number)) for number in (seed, *numbers))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Noise:
    """One stream of Gaussian noise per picture, so that a picture is the same in any batch.

    The streams are drawn on the CPU, which makes them the same on every device.
    """

    def __init__(self, seeds: Sequence[int], device: str | torch.device = "cpu"):
        self.device = device
        self.generators = [torch.Generator().manual_seed(fold(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """The next noise of every picture: [N, *shape] float32, where shape is that of one."""
        noise = [torch.randn(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(noise).to(self.device)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """The next uniform numbers in [0, 1) of every picture: [N, *shape] float32."""
        drawn = [torch.rand(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(drawn).to(self.device)


class Counted(Noise):
    """Streams that are drawn all at once, where they are needed: other numbers than those of ``Noise``.

    A picture's draw number d are the words of Philox 4x32-10 under the picture's key, of the counters
    (0, d, 0, 0), (1, d, 0, 0), ...: the same on every device, but for how its logarithms round.
    """

    def __init__(self, seeds: Sequence[int], device: str | torch.device = "cpu"):
        self.device, self.draws = device, 0
        keys = [(key & WORD, key >> 32) for key in map(fold, seeds)]
        self.key = torch.tensor(keys, dtype=torch.int64).view(-1, 2).to(device)

    def __len__(self) -> int:
        return len(self.key)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Two words make two numbers (Box & Muller 1958)."""
        first, second = self._words(shape).float().chunk(2, dim=1)  # [N, 2, M] each
        radius, angle = (-2 * ((first + 0.5) / 2**32).log()).sqrt(), second * (2 * math.pi / 2**32)
        return self._shaped(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1), shape)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        return self._shaped((self._words(shape) >> 8).float() / 2**24, shape)

    def _words(self, shape: Sequence[int]) -> Tensor:
        """[N, 4, M], of at least as many words as the shape has numbers."""
        counter = torch.zeros(4, -(-math.prod(shape) // 4), dtype=torch.int64, device=self.key.device)
        counter[0] = torch.arange(counter.shape[1], device=self.key.device)
        counter[1] = self.draws
        self.draws += 1
        return philox(counter, self.key[..., None])

    def _shaped(self, numbers: Tensor, shape: Sequence[int]) -> Tensor:
        return numbers.flatten(1)[:, : math.prod(shape)].reshape(len(self), *shape)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox 4x32-10: random words of counters and keys (Salmon et al. 2011, section 4.1).

    counter: [..., 4, M]; key: [..., 2, M]; broadcast to words [..., 4, M]. All int64, of 0..2^32 - 1.
    """
    a, b, c, d = counter.unbind(-2)
    left, right = key.unbind(-2)
    for _ in range(10):
        high, low = a * 0xD2511F53, c * 0xCD9E8D57  # 64 bits: what overflows the sign is masked away
        a, b = (low >> 32 & WORD) ^ b ^ left, low & WORD
        c, d = (high >> 32 & WORD) ^ d ^ right, high & WORD
        left, right = left + 0x9E3779B9 & WORD, right + 0xBB67AE85 & WORD
    return torch.stack(torch.broadcast_tensors(a, b, c, d), dim=-2)


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
