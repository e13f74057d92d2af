"""Stages: where a network and the mathematics of diffusion meet.

A stage knows what its network is told (how to whiten an embedding, when to drop a condition, how a
low-resolution picture joins the input) and how it is sampled by default. ``Prior`` makes CLIP image
embeddings from text; ``Decoder`` makes pictures from embeddings, text, classes or nothing, and with
``low_res`` it is an upsampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from .checkpoint import CheckpointError, load_checkpoint, load_strictly, save_checkpoint
from .config import Config, parse_config
from .diffusion import guidance
from .diffusion.denoiser import Denoiser, check_prediction
from .diffusion.losses import check_loss, loss_terms
from .diffusion.noise import Noise
from .diffusion.samplers import SAMPLERS, Step
from .diffusion.schedule import make_schedule, parse_steps, step_list
from .nets.prior import PriorConfig, PriorTransformer
from .nets.unet import UNet, UNetConfig

Conditions = dict[str, Tensor]  # what a network is told, one row a picture
Objective = Callable[[Tensor], Tensor]  # pictures [N,3,S,S] in [-1,1] -> log-probability [N]
Variance = Annotated[float, Field(ge=0)]
Steps = Annotated[int | str, BeforeValidator(parse_steps)]  # 24, "10,10,3,2,2", "ddim25" or "fast27"


class Process(Config):
    """A diffusion process, what the network says about it, and the loss that trains it."""

    schedule: Literal["cosine", "linear", "flow"] = "cosine"
    timesteps: int = Field(1000, ge=1)
    predicts: Literal["eps", "x0", "v"] = "eps"
    variance: Literal["small", "large", "learned"] = "small"
    loss: Literal["simple", "hybrid", "vlb", "rescaled", "auxiliary"] = "simple"
    weighting: Literal["none", "min_snr", "p2"] = "none"  # of the squared error in simple and hybrid
    auxiliary_weight: float = Field(0.001, ge=0)          # of the x0 term in auxiliary

    @model_validator(mode="after")
    def _parts_go_together(self) -> Process:
        check_loss(self.loss, self.weighting, self.variance)
        check_prediction(self.predicts, self.variance, make_schedule(self.schedule, self.timesteps))
        return self


class Sampling(Config):
    """Defaults that travel with a stage."""

    sampler: Literal["ddpm", "ddim", "dpm++2m", "heun"] = "dpm++2m"
    steps: Steps = 24
    guidance_scale: float = Field(1.0, ge=0)
    guidance_rescale: float = Field(0.0, ge=0, le=1)  # against overexposure (Lin et al. 2023); 0 = off
    threshold: Literal["static", "dynamic", "none"] = "static"  # how x0 is kept in the data's range
    eta: float = Field(0.0, ge=0, le=1)  # ddim: share of fresh noise
    x0_variance: dict[int, Variance] | None = None  # ddpm: Analytic-DPM's, by t; None = the network's
    candidates: int = Field(1, ge=1)  # prior: embeddings drawn a picture; the best by text is kept

    @model_validator(mode="after")
    def _of_the_sampler(self) -> Sampling:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is for ddim alone, not for {self.sampler}")
        if self.x0_variance is not None and self.sampler != "ddpm":
            raise ValueError(f"x0_variance is for ddpm alone, not for {self.sampler}")
        return self


class PriorStageConfig(Config):
    """Text to image embedding (unCLIP, Ramesh et al. 2022, section 2.2)."""

    kind: Literal["prior"] = "prior"
    net: PriorConfig
    process: Process = Process(predicts="x0")
    sampling: Sampling = Sampling(steps=16, guidance_scale=2.0, candidates=2)
    drop_text: float = Field(0.1, ge=0, le=1)  # chance of training without the text
    drop_tokens: float = Field(0.0, ge=0, le=1)  # ... with the text's embedding alone
    text_noise: float = Field(0.0, ge=0)  # length of the noise added to the text's embedding
    clamp: float = Field(5.0, gt=0)            # largest whitened coordinate, in standard deviations


class LowRes(Config):
    """The smaller picture that an upsampler starts from, and how it is corrupted in training."""

    size: int = Field(gt=0)                          # its height and width in pixels
    blur: float = Field(0.6, ge=0)                   # largest sigma of the 3x3 blur, in its pixels
    noise: float = Field(0.0, ge=0)                  # largest standard deviation of added noise
    residual_scale: float | None = Field(None, gt=0)  # diffuse (picture - bilinear) / this; None = picture


class DecoderStageConfig(Config):
    """Pictures from whatever the network takes; with ``low_res``, an upsampler."""

    kind: Literal["decoder"] = "decoder"
    net: UNetConfig
    process: Process = Process(predicts="eps", variance="learned", loss="hybrid")
    sampling: Sampling = Sampling()
    drop_image: float = Field(0.1, ge=0, le=1)    # chance of training without the image embedding
    drop_text: float = Field(0.5, ge=0, le=1)     # ... without the text tokens
    drop_class: float = Field(0.1, ge=0, le=1)    # ... without the class
    embed_noise: float = Field(0.0, ge=0)         # noise added to the whitened embedding in training
    low_res: LowRes | None = None


class Stage(nn.Module):
    """A network with its process; ``embed_mean`` and ``embed_std`` [D] whiten CLIP image embeddings."""

    def __init__(self, config: Config, network: nn.Module, embed_dim: int) -> None:
        super().__init__()
        process = config.process
        self.config = config
        self.network = network
        self.register_buffer("embed_mean", torch.zeros(embed_dim))
        self.register_buffer("embed_std", torch.ones(embed_dim))
        self.schedule = make_schedule(process.schedule, process.timesteps)
        self.denoiser = Denoiser(self.call_network, self.schedule, process.predicts, process.variance)
        self.facts: dict = {}  # what the checkpoint said besides: pictures seen, the CLIP model, ...

    def call_network(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """The network's raw output; a place for stages that prepare its input."""
        return self.network(x, t, **conditions)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Training loss of noised data, by name, each [N]."""
        process = self.config.process
        return loss_terms(self.denoiser, x0, t, noise, conditions, kind=process.loss,
                          weighting=process.weighting, auxiliary_weight=process.auxiliary_weight)

    def whiten(self, embed: Tensor) -> Tensor:
        """CLIP image embedding [N,D] -> zero mean and unit variance a coordinate."""
        return (embed - self.embed_mean) / self.embed_std

    def unwhiten(self, x: Tensor) -> Tensor:
        """The inverse of ``whiten``, normalised to length 1."""
        return F.normalize(x * self.embed_std + self.embed_mean, dim=-1)

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
    ) -> Iterator[Step]:
        """Sample pictures (or embeddings) of ``shape``, one for each stream of ``noise``."""
        options = {"ddim": {"eta": sampling.eta}, "ddpm": {"x0_variance": sampling.x0_variance}}
        return SAMPLERS[sampling.sampler](denoise, self.schedule, noise(shape), self.levels(sampling), noise,
                                          **options.get(sampling.sampler, {}))

    def levels(self, sampling: Sampling) -> list[int]:
        """The levels that sampling visits, from noise down to 0: one more than its steps."""
        return step_list(sampling.steps, self.schedule.timesteps)

    def save(self, path: str | Path, dtype: torch.dtype | None = None, **facts: object) -> None:
        """Write the stage as one checkpoint."""
        save_checkpoint(path, self.state_dict(), kind=self.config.kind, dtype=dtype,
                        config=self.config.model_dump(mode="json"), **{**self.facts, **facts})


def _chance(n: int, p: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Bool [n], True with probability ``p``."""
    return torch.rand(n, device=like.device, generator=generator) < p


class Prior(Stage):
    """Text -> CLIP image embedding, by diffusion in the whitened embedding space."""

    def __init__(self, config: PriorStageConfig) -> None:
        super().__init__(config, PriorTransformer(config.net), config.net.embed_dim)

    def set_memory(self, text_embed: Tensor, image_embed: Tensor) -> None:
        """Take known texts and their image embeddings, both [K,D], K <= ``net.memory``; statistics first."""
        self.network.memory.fill(text_embed, self.whiten(image_embed))

    def conditions(self, text_embed: Tensor, text: Tensor, text_mask: Tensor) -> Conditions:
        """What the network is told: text_embed [N,D], text [N,L,W], text_mask bool [N,L]."""
        length = self.config.net.text_length
        if text.shape[1] > length:
            raise ValueError(f"the prior takes {length} text tokens, not {text.shape[1]}")
        present = torch.ones(len(text), dtype=torch.bool, device=text.device)
        return {"text_embed": text_embed, "text": text, "text_mask": text_mask, "has_text": present}

    def null(self, conditions: Conditions) -> Conditions:
        """The same without the text."""
        return {**conditions, "has_text": torch.zeros_like(conditions["has_text"])}

    def drop(self, conditions: Conditions, generator: torch.Generator | None = None) -> Conditions:
        """Training only: leave the text out now and then, for classifier-free guidance (Ho & Salimans
        2021); or its tokens; and blur its embedding. The last two are for words that no caption holds:
        their tokens are strange, but their embeddings lie near those of words with their meaning.
        """
        kept, config, n = dict(conditions), self.config, len(conditions["text"])
        embed, mask = kept["text_embed"], kept["text_mask"]
        kept["has_text"] = kept["has_text"] & ~_chance(n, config.drop_text, embed, generator)
        if config.drop_tokens:
            kept["text_mask"] = mask & ~_chance(n, config.drop_tokens, embed, generator)[:, None]
        if config.text_noise:
            noise = torch.randn(embed.shape, device=embed.device, generator=generator)
            blurred = embed + config.text_noise * embed.shape[1] ** -0.5 * noise
            kept["text_embed"] = F.normalize(blurred, dim=-1)
        return kept

    def denoise(
        self,
        conditions: Conditions,
        null: Conditions,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        threshold: str = "static",
    ) -> guidance.Denoise:
        """The guided, clamped denoiser; the last three as in ``Sampling``."""
        denoise = guidance.classifier_free(self.denoiser, conditions, null, guidance_scale,
                                           guidance_rescale, self.schedule)
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
        """Image embeddings [N,D] of length 1."""
        sampling = sampling or self.config.sampling
        denoise = self.denoise(conditions, null or self.null(conditions), sampling.guidance_scale,
                               sampling.guidance_rescale, sampling.threshold)
        *_, last = self.run(denoise, (self.config.net.embed_dim,), noise, sampling)
        return self.unwhiten(last.x)


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
            kept["has_image"] = kept["has_image"] & ~_chance(len(embed), config.drop_image, embed, generator)
            if config.embed_noise:
                noise = torch.randn(embed.shape, device=embed.device, generator=generator)
                kept["image_embed"] = embed + config.embed_noise * noise
        if "text_mask" in kept:
            mask = kept["text_mask"]
            kept["text_mask"] = mask & ~_chance(len(mask), config.drop_text, mask, generator)[:, None]
        if "classes" in kept:
            classes = kept["classes"]
            dropped = _chance(len(classes), config.drop_class, classes, generator)
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


STAGES = {"prior": (Prior, PriorStageConfig), "decoder": (Decoder, DecoderStageConfig)}


def load_stage(
    path: str | Path,
    kind: str | None = None,  # "prior" or "decoder"; None takes either
    device: str | torch.device = "cpu",
) -> Prior | Decoder:
    """Rebuild a stage from its checkpoint, strictly; eval mode, no gradients."""
    tensors, header = load_checkpoint(path, kind)
    if header["kind"] not in STAGES:
        raise CheckpointError(f"{path} holds a {header['kind']}, not a {' or a '.join(STAGES)}")
    stage_class, config_class = STAGES[header["kind"]]
    stage = stage_class(parse_config(config_class, header["config"], source=str(path)))
    load_strictly(stage, tensors, source=str(path))
    stage.facts = {k: v for k, v in header.items() if k not in ("format", "kind", "config")}
    return stage.to(device).eval().requires_grad_(False)

