"""The prior: CLIP image embeddings from text."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion import guidance
from ..diffusion.noise import Noise, Random, randn
from ..nets.prior import PriorTransformer
from ..nets.prior_ar import ARPriorTransformer
from .config import ARPriorStageConfig, PriorStageConfig, Sampling
from .stage import Conditions, Stage, Whitened, chance


class TextPrior(Whitened):
    """What all priors share: text -> CLIP image embedding."""

    config: PriorStageConfig | ARPriorStageConfig
    network: PriorTransformer | ARPriorTransformer

    @property
    def takes_clip(self) -> bool:
        return True

    def set_memory(self, text_embed: Tensor, image_embed: Tensor) -> None:
        """Take known texts and their image embeddings, both [K,D], K <= ``net.memory``; statistics first.

        Raises ``ValueError`` for a prior without a memory.
        """
        if self.network.memory is None:
            raise ValueError("this prior has no memory (its net.memory is 0)")
        self.network.memory.fill(text_embed, self.whiten(image_embed))

    def conditions(self, text_embed: Tensor, text: Tensor, text_mask: Tensor) -> Conditions:
        """What the network is told: text_embed [N,D], text [N,L,W], text_mask bool [N,L].

        text_embed is of length 1, or as CLIP has it if ``config.unit_norm`` is false.
        """
        length = self.config.net.text_length
        if text.shape[1] > length:
            raise ValueError(f"the prior takes {length} text tokens, not {text.shape[1]}")
        inputs = {"text_embed": text_embed, "text": text, "text_mask": text_mask}
        if self.config.net.null_text:
            inputs["has_text"] = torch.ones(len(text), dtype=torch.bool, device=text.device)
        return inputs

    def null(self, conditions: Conditions) -> Conditions:
        """The same without the text; ``ValueError`` for a prior that knows the text "" in its place."""
        if "has_text" not in conditions:
            raise ValueError(
                "this prior was trained without a learned 'no text' (null_text is false): "
                'guide it with the conditions of the text ""'
            )
        return {**conditions, "has_text": torch.zeros_like(conditions["has_text"])}

    def drop(self, conditions: Conditions, generator: Random = None) -> Conditions:
        """Training only: leave the text out now and then, for classifier-free guidance (Ho & Salimans
        2021); or its tokens; and blur its embedding. The last two are for words that no caption holds:
        their tokens are strange, but their embeddings lie near those of words with their meaning.
        """
        left, config, n = dict(conditions), self.config, len(conditions["text"])
        embed, mask = left["text_embed"], left["text_mask"]
        if "has_text" in left:
            left["has_text"] = left["has_text"] & ~chance(n, config.drop_text, embed, generator)
        elif config.drop_text:
            raise ValueError(
                'a prior whose null_text is false starts guidance from the text "", which no '
                "text that is left out becomes; train it with drop_text 0 on captions some of "
                "which are empty"
            )
        if config.drop_tokens:
            left["text_mask"] = mask & ~chance(n, config.drop_tokens, embed, generator)[:, None]
        if config.text_noise:
            noise = randn(embed.shape, embed.device, generator)
            blurred = embed + config.text_noise * embed.shape[1] ** -0.5 * noise
            left["text_embed"] = F.normalize(blurred, dim=-1)
        return left

    def sample(
        self, conditions: Conditions, noise: Noise, sampling: Any = None, null: Conditions | None = None
    ) -> Tensor:
        """Image embeddings [N,D]; sampling is of the prior's own kind."""
        raise NotImplementedError


class Prior(TextPrior, Stage):
    """By diffusion in the whitened embedding space."""

    config_class = PriorStageConfig
    config: PriorStageConfig
    network: PriorTransformer

    def __init__(self, config: PriorStageConfig) -> None:
        super().__init__(config, PriorTransformer(config.net), config.net.embed_dim)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Training loss of noised embeddings, by name, each [N]."""
        if self.config.objective == "eclipse":
            return self._eclipse(x0, noise, conditions)
        return super().forward(x0, t, noise, conditions)

    def _eclipse(self, x0: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Of embeddings that are made of noise at once: squared error, and how they are told apart by their
        texts among those of the batch (Patel et al. 2024, arXiv:2312.04655, eq. 4 and 5)."""
        last = torch.full((len(x0),), self.schedule.timesteps, device=x0.device)
        made = self.denoiser(noise, last, **conditions).x0.float()  # [N,D]
        likeness = F.normalize(self.coloured(made), dim=-1) @ F.normalize(conditions["text_embed"], dim=-1).T
        likeness, own = likeness / self.config.temperature, torch.arange(len(x0), device=x0.device)
        of_text, of_picture = (F.cross_entropy(x, own, reduction="none") for x in (likeness, likeness.T))
        contrast = (of_text + of_picture) / 2
        mse = (made - x0).square().mean(1)
        return {"loss": mse + self.config.contrast * contrast, "mse": mse, "contrast": contrast}

    def denoise(
        self,
        conditions: Conditions,
        null: Conditions,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        threshold: str = "static",
        guidance_interval: tuple[float, float] | None = None,
        apg: tuple[float, float, float] | None = None,
    ) -> guidance.Denoise:
        """The guided, clamped denoiser; all but the conditions as in ``Sampling``."""
        denoise = guidance.classifier_free(
            self.denoiser,
            conditions,
            null,
            guidance_scale,
            guidance_rescale,
            self.schedule,
            guidance_interval,
            None if apg is None else guidance.Projection(*apg),
        )
        if threshold == "none":
            return denoise
        limit = partial(guidance.THRESHOLDS[threshold], limit=self.config.clamp)
        return guidance.clamp_x0(denoise, self.schedule, limit)

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling | None = None,
        null: Conditions | None = None,
    ) -> Tensor:
        """Image embeddings [N,D], of length 1 unless ``config.unit_norm`` is false.

        null: what guidance starts from; None = the learned "no text".
        """
        sampling = sampling or self.config.sampling
        if null is None:
            null = conditions if sampling.guidance_scale == 1 else self.null(conditions)
        denoise = self.denoise(conditions, null, sampling.guidance_scale, **sampling.of_guidance)
        *_, last = self.run(denoise, (self.config.net.embed_dim,), noise, sampling)
        return self.unwhiten(last.x) if self.config.unit_norm else self.coloured(last.x)
