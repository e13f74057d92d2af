"""Stages of a few weights that are not zero, and what they are told."""

import torch
import torch.nn.functional as F

from unclip.guides.classifier import Classifier, ClassifierStageConfig
from unclip.nets.prior import PriorConfig
from unclip.nets.text import TextConfig
from unclip.nets.unet import UNetConfig
from unclip.stages import (
    ARPrior,
    ARPriorStageConfig,
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
CLASSIFIER = {"net": {**NET, "classes": 3}, "schedule": "cosine"}
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
        dim = len(stage.embed_mean)
        stage.set_statistics(randn(dim, seed=2) * 0.1, randn(dim, seed=3).abs() + 0.2)
    return stage.eval().requires_grad_(False)


def decoder(*, net: dict | None = None, process: Process | None = None, **config) -> Decoder:
    """A tiny decoder; unless told otherwise it takes everything, and learns its variance."""
    process = process or Process(predicts="v", variance="learned", loss="hybrid")
    out = 6 if process.variance == "learned" else 3
    net = UNetConfig(**{**NET, "out_channels": out, **(INPUTS if net is None else net)})
    return awake(Decoder(DecoderStageConfig(net=net, process=process, **config)))


def upsampler(size: int = 64, low: int = 16, **low_res) -> Decoder:
    net = {"image_size": size, "in_channels": 6, "pixel_unshuffle": 4, "middle_attention": False}
    return decoder(
        net=net,
        process=Process(predicts="v"),
        sampling=Sampling(steps=2),
        low_res=LowRes(size=low, **low_res),
    )


def prior(null_text: bool = True, **config) -> Prior:
    net = PriorConfig(
        embed_dim=DIM, text_dim=5, text_length=7, width=16, layers=1, heads=2, null_text=null_text
    )
    return awake(Prior(PriorStageConfig(net=net, sampling=Sampling(steps=3, guidance_scale=2.0), **config)))


def classifier(**net: object) -> Classifier:
    """A tiny classifier of noised pictures, and of three classes that it tells apart."""
    torch.manual_seed(0)
    stage = Classifier(ClassifierStageConfig(**{**CLASSIFIER, "net": {**CLASSIFIER["net"], **net}}))
    stage.embed_mean = ()  # as for a stage without embeddings
    awake(stage).network.pool.out.weight *= 30
    return stage


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


TEXT = {"vocab_size": 40, "length": 6, "width": 8, "layers": 1, "heads": 2}


def glide(size: int = 8, low: int | None = None, inpaint: bool = False, **config) -> Decoder:
    """A tiny GLIDE: eps and a learned variance, from the tokens of a text transformer of its own."""
    channels = 3 + 4 * inpaint + (3 if low else 0)
    net = {
        "image_size": size,
        "in_channels": channels,
        "attention_resolutions": (size,),
        "context_channels": 8,
        "text_dim": 8,
        "text_embed_dim": 8,
        "text_project": False,
    }
    process = config.pop("process", Process(predicts="eps", variance="learned", loss="hybrid"))
    if low:
        config["low_res"] = LowRes(size=low, **config.pop("low_res", {}))
    return decoder(net=net, process=process, text=TextConfig(**TEXT), inpaint=inpaint, **config)


def tokens(n: int, seed: int = 6) -> dict[str, torch.Tensor]:
    """Texts of different lengths, one of them empty if there are three."""
    lengths = torch.tensor([3, 6, 0] * n)[:n, None]
    ids = torch.randint(TEXT["vocab_size"], (n, TEXT["length"]), generator=seeded(seed))
    return {"tokens": ids, "token_mask": torch.arange(TEXT["length"]) < lengths}


def prior_ar(memory: int = 0, **config) -> ARPrior:
    """A tiny autoregressive prior whose codes were measured on random pairs."""
    net = {"embed_dim": DIM, "text_dim": 5, "text_length": 7, "width": 16, "layers": 2, "heads": 2}
    net |= {"memory": memory, "components": 4, "buckets": 11, "similarities": 6, **config.pop("net", {})}
    torch.manual_seed(0)
    stage = awake(ARPrior(ARPriorStageConfig(net=net, **config)))
    images = unit(200, seed=7)
    stage.set_statistics(images.mean(0), images.std(0))
    stage.set_codes(unit(200, seed=8), images)
    return stage
