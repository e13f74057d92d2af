"""A model as Karlo is: tiny, of embeddings as they come, and guided from the text ""."""

from __future__ import annotations

import torch
from tiny_models import SMALL, WIDTH, tiny_clip

from unclip.nets.prior import PriorConfig
from unclip.nets.unet import UNetConfig
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Decoder, DecoderStageConfig, LowRes, Prior, PriorStageConfig, Process, Sampling


def karlo() -> Pipeline:
    """CLIP's embeddings as they come; guidance of the prior and of the decoder starts from the text ""."""
    few = Sampling(sampler="ddpm", steps=2, guidance_scale=4.0)
    prior = PriorConfig(
        embed_dim=WIDTH, text_dim=WIDTH, text_length=16, width=16, layers=1, heads=2, null_text=False
    )
    net = UNetConfig(
        **SMALL,
        context_channels=8,
        image_embed_dim=WIDTH,
        text_dim=WIDTH,
        text_embed_dim=WIDTH,
        out_channels=6,
    )
    up = UNetConfig(
        image_size=16,
        in_channels=6,
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        head_channels=8,
        middle_attention=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = [
            Prior(PriorStageConfig(net=prior, sampling=few, unit_norm=False, drop_text=0.0)),
            Decoder(DecoderStageConfig(net=net, sampling=few, null_text="empty", drop_text=0.0)),
            Decoder(
                DecoderStageConfig(
                    net=up,
                    process=Process(predicts="eps"),
                    last_network=True,
                    low_res=LowRes(size=8, interpolation="bicubic"),
                    sampling=Sampling(sampler="ddpm", steps=3),
                )
            ),
        ]
        for stage in stages:
            for weight in stage.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
            stage.eval().requires_grad_(False)
    return Pipeline(stages[1], stages[0], stages[2:], tiny_clip(), "tiny-karlo")
