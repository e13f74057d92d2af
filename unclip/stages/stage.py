"""What all stages share: the network with its process, whitening, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import CheckpointError, Saved
from ..diffusion import guidance
from ..diffusion.denoiser import Denoiser
from ..diffusion.losses import loss_terms
from ..diffusion.noise import Noise, Random, rand
from ..diffusion.samplers import SAMPLERS, Step
from ..diffusion.schedule import make_schedule, step_list
from .config import Sampling, StageConfig

Conditions = dict[str, Tensor]  # what a network is told, one row a picture
Objective = Callable[[Tensor], Tensor]  # pictures [N,3,S,S] in [-1,1] -> log-probability [N]


class Stage(Saved):
    """A network with its process; ``embed_mean`` and ``embed_std`` [D] whiten CLIP image embeddings."""

    config: StageConfig
    embed_mean: Tensor
    embed_std: Tensor

    def __init__(self, config: StageConfig, network: nn.Module, embed_dim: int) -> None:
        super().__init__(config)
        process = config.process
        self.network = network
        self.register_buffer("embed_mean", torch.zeros(embed_dim))
        self.register_buffer("embed_std", torch.ones(embed_dim))
        self.schedule = make_schedule(process.schedule, process.timesteps, process.shift)
        self.denoiser = Denoiser(
            self.call_network, self.schedule, process.predicts, process.variance, process.time_scale
        )

    @property
    def takes_clip(self) -> bool:
        """Whether it takes anything that a CLIP makes."""
        raise NotImplementedError

    def call_network(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """The network's raw output; a place for stages that prepare its input."""
        return self.network(x, t, **conditions)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Training loss of noised data, by name, each [N]."""
        process = self.config.process
        return loss_terms(
            self.denoiser,
            x0,
            t,
            noise,
            conditions,
            kind=process.loss,
            weighting=process.weighting,
            auxiliary_weight=process.auxiliary_weight,
        )

    def whiten(self, embed: Tensor) -> Tensor:
        """CLIP image embedding [N,D] -> zero mean and unit variance a coordinate."""
        return (embed - self.embed_mean) / self.embed_std

    def unwhiten(self, x: Tensor) -> Tensor:
        """The inverse of ``whiten``, normalised to length 1."""
        return F.normalize(self.coloured(x), dim=-1)

    def coloured(self, x: Tensor) -> Tensor:
        """The inverse of ``whiten``, as long as it comes."""
        return x * self.embed_std + self.embed_mean

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and standard deviation [D] of the training embeddings."""
        self.embed_mean.copy_(mean)
        self.embed_std.copy_(std.clamp_min(1e-4))

    def run(
        self,
        denoise: guidance.Denoise,
        shape: tuple[int, ...],
        noise: Noise,
        sampling: Sampling,
        shift: guidance.GradFn | None = None,
    ) -> Iterator[Step]:
        """Sample pictures (or embeddings) of ``shape``, one for each stream of ``noise``.

        shift: of ddpm's mean, see ``samplers.ddpm``.
        """
        options: dict[str, dict[str, object]] = {
            "ddim": {"eta": sampling.eta},
            "ddpm": {"x0_variance": sampling.x0_variance, "shift": shift},
        }
        start = sampling.noise_scale * noise(shape)
        return SAMPLERS[sampling.sampler](
            denoise, self.schedule, start, self.levels(sampling), noise, **options.get(sampling.sampler, {})
        )

    def levels(self, sampling: Sampling) -> list[int]:
        """The levels that sampling visits, from noise down to 0: one more than its steps."""
        return step_list(sampling.steps, self.schedule.timesteps)

    def check(self, source: str) -> None:
        super().check(source)
        if (self.embed_std <= 0).any():
            raise CheckpointError(f"{source} holds a standard deviation of embeddings that is not above 0")


def chance(n: int, p: float, like: Tensor, generator: Random) -> Tensor:
    """Bool [n], True with probability ``p``."""
    return rand((n,), like.device, generator) < p
