"""A whole model, tiny and untrained, and its CLIP."""

from __future__ import annotations

import torch

from unclip.clip import Clip, build_clip
from unclip.nets.prior import PriorConfig
from unclip.nets.unet import UNetConfig
from unclip.pipeline.pipeline import Pipeline
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

WIDTH = 16  # of CLIP's embeddings and text tokens
CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "width": WIDTH, "layers": 1, "heads": 2},
}

SMALL = {  # of a U-Net of 8 pixels
    "image_size": 8,
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "head_channels": 8,
    "attention_resolutions": (8,),
}


def tiny_clip(seed: int = 0) -> Clip:
    """A CLIP of 16-pixel pictures and 16 tokens, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_clip(CLIP)


def tiny_pipeline() -> Pipeline:
    """Text -> prior -> 16 pixels -> 64 pixels, a few steps each, with random weights."""
    few = Sampling(steps=2, guidance_scale=2.0)
    net = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "head_channels": 8, "out_channels": 6}
    prior = PriorConfig(embed_dim=WIDTH, text_dim=WIDTH, text_length=16, width=16, layers=1, heads=2)
    decoder = UNetConfig(
        image_size=16,
        attention_resolutions=(8,),
        context_channels=8,
        image_embed_dim=WIDTH,
        text_dim=WIDTH,
        **net,
    )
    upsampler = UNetConfig(
        image_size=64, in_channels=6, pixel_unshuffle=4, middle_attention=False, **{**net, "out_channels": 3}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = [
            Prior(PriorStageConfig(net=prior, sampling=few.model_copy(update={"candidates": 2}))),
            Decoder(
                DecoderStageConfig(
                    net=decoder,
                    sampling=few,
                    process=Process(predicts="v", variance="learned", loss="hybrid"),
                )
            ),
            Decoder(
                DecoderStageConfig(
                    net=upsampler,
                    process=Process(predicts="v"),
                    low_res=LowRes(size=16),
                    sampling=Sampling(steps=1),
                )
            ),
        ]
        for stage in stages:
            _awaken(stage)
    return Pipeline(stages[1], stages[0], stages[2:], tiny_clip(), "tiny", "an untrained model, for tests")


def _awaken(stage: Stage) -> None:
    """Stages start as zeros at their ends; here the pictures shall depend on what is asked for."""
    for weight in stage.parameters():
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    stage.eval().requires_grad_(False)


def lone_decoder(seed: int = 0, **net) -> Decoder:
    """A decoder of 8 pixels, of which the output depends on its inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = DecoderStageConfig(
            net=UNetConfig(**{**SMALL, **net}),
            process=Process(predicts="v"),
            sampling=Sampling(steps=2, guidance_scale=2.0),
        )
        stage = Decoder(config)
        for weight in stage.parameters():
            weight.data += 0.4 * torch.randn_like(weight)
    return stage.eval().requires_grad_(False)


def weaker_decoder(seed: int = 7, **process: object) -> Decoder:
    """A smaller decoder of what the tiny model's draws, told less, to be led away from."""
    net = UNetConfig(
        image_size=16, channels=8, channel_mult=(1,), num_res_blocks=1, head_channels=8, image_embed_dim=WIDTH
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stage = Decoder(DecoderStageConfig(net=net, process=Process(**{"predicts": "x0", **process})))
        for weight in stage.parameters():  # networks start with zeros at their ends
            weight.data += 0.05 * torch.randn_like(weight)
    return stage.eval().requires_grad_(False)
