"""What all stages share: the network with its process, whitening, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import CheckpointError, Saved, SavedConfig
from ..diffusion import guidance
from ..diffusion.denoiser import Denoiser
from ..diffusion.gaussian import diffuse
from ..diffusion.losses import loss_terms
from ..diffusion.noise import Noise, Random, rand
from ..diffusion.repaint import repaint
from ..diffusion.samplers import SAMPLERS, Step
from ..diffusion.schedule import make_schedule, step_list
from ..nets.autoencoder import Autoencoder
from .config import Sampling, StageConfig
from .origin import Origin

Conditions = dict[str, Tensor]  # what a network is told, one row a picture
Objective = Callable[[Tensor], Tensor]  # pictures [N,3,S,S] in [-1,1] -> log-probability [N]


class Whitened(Saved):
    """A network; ``embed_mean`` and ``embed_std`` [D] whiten CLIP image embeddings."""

    embed_mean: Tensor
    embed_std: Tensor

    def __init__(self, config: SavedConfig, network: nn.Module, embed_dim: int) -> None:
        super().__init__(config)
        self.network = network
        self.register_buffer("embed_mean", torch.zeros(embed_dim))
        self.register_buffer("embed_std", torch.ones(embed_dim))

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

    def check(self, source: str) -> None:
        super().check(source)
        if (self.embed_std <= 0).any():
            raise CheckpointError(f"{source} holds a standard deviation of embeddings that is not above 0")


class Stage(Whitened):
    """A network with its process."""

    config: StageConfig
    autoencoder: Autoencoder | None  # of a decoder that draws latents

    def __init__(self, config: StageConfig, network: nn.Module, embed_dim: int) -> None:
        super().__init__(config, network, embed_dim)
        process = config.process
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

    def run(
        self,
        denoise: guidance.Denoise,
        shape: tuple[int, ...],
        noise: Noise,
        sampling: Sampling,
        shift: guidance.GradFn | None = None,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Sample pictures (or embeddings) of ``shape``, one for each stream of ``noise``.

        shift:  of ddpm's mean, see ``samplers.ddpm``.
        origin: what there is already, as the process diffuses it.
        """
        options: dict[str, dict[str, object]] = {
            "ddim": {"eta": sampling.eta},
            "ddpm": {"x0_variance": sampling.x0_variance, "shift": shift},
        }
        own = options.get(sampling.sampler, {})

        def sample(x: Tensor, steps: Sequence[int]) -> Iterator[Step]:
            return SAMPLERS[sampling.sampler](denoise, self.schedule, x, steps, noise, **own)

        start, levels = sampling.noise_scale * noise(shape), self.levels(sampling, origin)
        if origin is None:
            return sample(start, levels)
        if origin.strength < 1:
            start = diffuse(origin.picture, start, self.schedule.at(levels[0]))
        if origin.known is None:
            return sample(start, levels)
        return repaint(
            sample, self.schedule, start, levels, noise, origin.picture, origin.known, origin.resamplings
        )

    def levels(self, sampling: Sampling, origin: Origin | None = None) -> list[int]:
        """The levels that sampling visits, from noise (or from those of ``origin``) down to 0."""
        levels = step_list(sampling.steps, self.schedule.timesteps)
        if origin is None or origin.strength == 1:
            return levels
        first = max(round(origin.strength * self.schedule.timesteps), 1)
        return [first, *(level for level in levels if level < first)]

    def count(self, sampling: Sampling, origin: Origin | None = None) -> int:
        """How many steps ``run`` yields."""
        steps = len(self.levels(sampling, origin)) - 1
        return steps if origin is None or origin.known is None else (steps - 1) * origin.resamplings + 1


def chance(n: int, p: float, like: Tensor, generator: Random) -> Tensor:
    """Bool [n], True with probability ``p``."""
    return rand((n,), like.device, generator) < p
