"""The decoder: pictures from embeddings, text, classes or nothing; with ``low_res``, an upsampler."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion import guidance
from ..diffusion.noise import Noise
from ..diffusion.samplers import Step
from ..nets.unet import UNet
from .config import DecoderStageConfig, Sampling
from .stage import Conditions, Objective, Stage, chance


class Decoder(Stage):
    """Conditions -> picture [N,3,S,S]; with ``config.low_res`` it enlarges a smaller picture."""

    def __init__(self, config: DecoderStageConfig) -> None:
        net, low_res = config.net, config.low_res
        channels = 6 if low_res else 3
        outputs = 6 if config.process.variance == "learned" else 3
        if (net.in_channels, net.out_channels) != (channels, outputs):
            raise ValueError(f"this stage needs a U-Net with in_channels {channels} and out_channels "
                             f"{outputs}, not {net.in_channels} and {net.out_channels}")
        if low_res and net.image_size % low_res.size:
            raise ValueError(f"{net.image_size} pixels are no whole multiple of low_res.size {low_res.size}")
        super().__init__(config, UNet(net), net.image_embed_dim or 0)

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.config.net.image_size

    @property
    def takes_image(self) -> bool:
        return self.config.net.image_embed_dim is not None

    @property
    def takes_text(self) -> bool:
        return self.config.net.text_dim is not None

    @property
    def takes_class(self) -> bool:
        return self.config.net.classes is not None

    def call_network(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Join the enlarged low-resolution picture to the input's channels."""
        base = conditions.pop("base", None)
        x = x if base is None else torch.cat([x, base], dim=1)
        return self.network(x, t, **conditions)

    def conditions(
        self,
        n: int,
        image_embed: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        classes: Tensor | None = None,
        low_res: Tensor | None = None,
    ) -> Conditions:
        """What the network is told about ``n`` pictures; what it does not take is left out.

        image_embed [N,D] of length 1; text [N,L,W] with text_mask bool [N,L]; classes int64 [N];
        low_res [N,3,s,s] in [-1,1]. None = not given (the network's "nothing").
        """
        made: Conditions = {}
        device = self.embed_mean.device
        if self.takes_image:
            given = image_embed is not None
            made["image_embed"] = (self.whiten(image_embed) if given else
                                   torch.zeros(n, self.config.net.image_embed_dim, device=device))
            made["has_image"] = torch.full((n,), given, dtype=torch.bool, device=device)
        if self.takes_text:
            made["text"] = text if text is not None else torch.zeros(
                n, 1, self.config.net.text_dim, device=device)
            made["text_mask"] = text_mask if text is not None else torch.zeros(
                n, 1, dtype=torch.bool, device=device)
        if self.takes_class:
            made["classes"] = classes if classes is not None else torch.full((n,), -1, device=device)
        if self.config.low_res:
            if low_res is None:
                raise ValueError("an upsampler needs a low-resolution picture")
            made["base"] = self.enlarge(low_res)
        return made

    def null(self, conditions: Conditions) -> Conditions:
        """The same with nothing to go by but the low-resolution picture."""
        empty = {"has_image": torch.zeros_like, "text_mask": torch.zeros_like,
                 "classes": lambda value: torch.full_like(value, -1)}
        return {key: empty[key](value) if key in empty else value for key, value in conditions.items()}

    def drop(self, conditions: Conditions, generator: torch.Generator | None = None) -> Conditions:
        """Training only: leave each condition out on its own chance, and add noise to the embedding."""
        kept, config = dict(conditions), self.config
        if "has_image" in kept:
            embed = kept["image_embed"]
            kept["has_image"] = kept["has_image"] & ~chance(len(embed), config.drop_image, embed, generator)
            if config.embed_noise:
                noise = torch.randn(embed.shape, device=embed.device, generator=generator)
                kept["image_embed"] = embed + config.embed_noise * noise
        if "text_mask" in kept:
            mask = kept["text_mask"]
            kept["text_mask"] = mask & ~chance(len(mask), config.drop_text, mask, generator)[:, None]
        if "classes" in kept:
            classes = kept["classes"]
            dropped = chance(len(classes), config.drop_class, classes, generator)
            kept["classes"] = torch.where(dropped, torch.full_like(classes, -1), classes)
        return kept

    def corrupt(self, low_res: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Training only: blur the small picture and add noise, so that the upsampler mends both."""
        config, n = self.config.low_res, len(low_res)
        def uniform() -> Tensor:
            return torch.rand(n, 1, 1, 1, device=low_res.device, generator=generator)
        if config.blur:
            low_res = blur3(low_res, config.blur * uniform())
        if config.noise:
            noise = torch.randn(low_res.shape, device=low_res.device, generator=generator)
            low_res = low_res + config.noise * uniform() * noise
        return low_res.clamp(-1, 1)

    def enlarge(self, low_res: Tensor) -> Tensor:
        """[N,3,s,s] -> [N,3,f*s,f*s], bilinear; f is the stage's factor (crops pass too)."""
        factor = self.size // self.config.low_res.size
        return F.interpolate(low_res, scale_factor=float(factor), mode="bilinear", align_corners=False)

    def to_data(self, picture: Tensor, conditions: Conditions) -> Tensor:
        """Picture in [-1,1] -> what the process diffuses (itself, or the scaled residual)."""
        scale = self.config.low_res.residual_scale if self.config.low_res else None
        return picture if scale is None else (picture - conditions["base"]) / scale

    def to_picture(self, x0: Tensor, conditions: Conditions) -> Tensor:
        """The inverse of ``to_data``, clamped to [-1,1]."""
        return guidance.static_threshold(self._free_picture(x0, conditions))

    def _free_picture(self, x0: Tensor, conditions: Conditions) -> Tensor:
        scale = self.config.low_res.residual_scale if self.config.low_res else None
        return x0 if scale is None else x0 * scale + conditions["base"]

    def denoise(
        self,
        conditions: Conditions,
        null: Conditions,
        guidance_scale: float,
        objective: Objective | None = None,
        guidance_rescale: float = 0.0,
        threshold: str = "static",
        climb: guidance.GradFn | None = None,
    ) -> guidance.Denoise:
        """The guided denoiser, its x0 kept to pictures in [-1,1] as ``Sampling.threshold`` says.

        objective: pictures [N,3,S,S] in [-1,1] -> log-probability [N], climbed by its gradient.
        climb: such a gradient itself, of something that knows noised pictures (``Classifier.climb``).
        """
        denoise = guidance.classifier_free(self.denoiser, conditions, null, guidance_scale,
                                           guidance_rescale, self.schedule)
        denoise = self._kept(denoise, conditions, threshold)
        if objective is not None:
            of_x0 = guidance.gradient_on_x0(
                denoise, self.schedule, lambda x0: objective(self.to_picture(x0, conditions)))
            denoise = guidance.gradient(denoise, self.schedule, of_x0)
            denoise = self._kept(denoise, conditions, threshold)
        if climb is not None:
            denoise = guidance.gradient(denoise, self.schedule, climb)
            denoise = self._kept(denoise, conditions, threshold)
        return denoise

    def _kept(self, denoise: guidance.Denoise, conditions: Conditions, threshold: str) -> guidance.Denoise:
        if threshold == "none":
            return denoise
        limit = guidance.THRESHOLDS[threshold]
        return guidance.clamp_x0(
            denoise, self.schedule,
            lambda x0: self.to_data(limit(self._free_picture(x0, conditions)), conditions))

    def sample(
        self,
        conditions: Conditions,
        noise: Noise,
        sampling: Sampling | None = None,
        null: Conditions | None = None,
        objective: Objective | None = None,
        climb: guidance.GradFn | None = None,
    ) -> Iterator[Step]:
        """Steps towards pictures; ``to_picture(step.x0, conditions)`` shows each."""
        sampling = sampling or self.config.sampling
        denoise = self.denoise(conditions, null or self.null(conditions), sampling.guidance_scale,
                               objective, sampling.guidance_rescale, sampling.threshold, climb)
        base = conditions.get("base")
        shape = (3, self.size, self.size) if base is None else tuple(base.shape[1:])
        return self.run(denoise, shape, noise, sampling)


def blur3(picture: Tensor, sigma: Tensor) -> Tensor:
    """3x3 Gaussian blur of [N,3,H,W] with sigma [N,1,1,1] in pixels; 0 leaves the picture alone."""
    side = torch.exp(-0.5 / sigma.square().clamp_min(1e-6))  # weight of a neighbour, the centre's is 1
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:])
    both = rows[..., 1:-1] + side * (rows[..., :-2] + rows[..., 2:])
    return both / (1 + 2 * side).square()
