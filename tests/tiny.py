"""Stages of a few weights that are not zero, and what they are told."""

import torch
import torch.nn.functional as F

from unclip.nets.prior import PriorConfig
from unclip.nets.unet import UNetConfig
from unclip.stages import (
    Decoder,
    DecoderStageConfig,
    LowRes,
    Prior,
    PriorStageConfig,
    Process,
    Sampling,
    Stage,
)

DIM = 6
NET = {"image_size": 8, "channels": 16, "channel_mult": (1,), "num_res_blocks": 1, "head_channels": 8}
INPUTS = {"image_embed_dim": DIM, "text_dim": 5, "context_channels": 8, "classes": 3}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def awake(stage: Stage) -> Stage:
    """Networks start with zeros at their ends; here every output shall depend on every input."""
    g = seeded(1)
    for weight in stage.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=g)
    if len(stage.embed_mean):
        stage.set_statistics(randn(DIM, seed=2) * 0.1, randn(DIM, seed=3).abs() + 0.2)
    return stage.eval().requires_grad_(False)


def decoder(*, net: dict | None = None, process: Process | None = None, **config) -> Decoder:
    """A tiny decoder; unless told otherwise it takes everything, and learns its variance."""
    process = process or Process(predicts="v", variance="learned", loss="hybrid")
    out = 6 if process.variance == "learned" else 3
    net = UNetConfig(**{**NET, "out_channels": out, **(INPUTS if net is None else net)})
    return awake(Decoder(DecoderStageConfig(net=net, process=process, **config)))


def upsampler(size: int = 64, low: int = 16, **low_res) -> Decoder:
    net = {"image_size": size, "in_channels": 6, "pixel_unshuffle": 4, "middle_attention": False}
    return decoder(net=net, process=Process(predicts="v"), sampling=Sampling(steps=2),
                   low_res=LowRes(size=low, **low_res))


def prior(**config) -> Prior:
    net = PriorConfig(embed_dim=DIM, text_dim=5, text_length=7, width=16, layers=1, heads=2)
    return awake(Prior(PriorStageConfig(net=net, sampling=Sampling(steps=3, guidance_scale=2.0), **config)))


def unit(n: int, seed: int = 4) -> torch.Tensor:
    return F.normalize(randn(n, DIM, seed=seed), dim=-1)


def text(n: int, length: int = 4) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([2, 4] * n)[:n, None]
    return {"text": randn(n, length, 5, seed=5), "text_mask": torch.arange(length) < lengths}


def everything(stage: Decoder, n: int = 2) -> dict[str, torch.Tensor]:
    return stage.conditions(n, image_embed=unit(n), **text(n), classes=torch.arange(n) % 3)


def last(steps):
    *_, step = steps
    return step
