"""Kandinsky 2.2 in diffusers' own code, small and with random weights, and its folders."""

from __future__ import annotations

from pathlib import Path

from karlo_models import DIM, awake, prior, text_encoder, tokenizer
from torch import nn

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 8, "block_out_channels": (32, 64),
    "layers_per_block": 1, "cross_attention_dim": 24, "encoder_hid_dim": DIM,
    "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image", "addition_embed_type_num_heads": 8,
    "attention_head_dim": 16,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip

MOVQ = {
    "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 5, "layers_per_block": 1,
    "norm_type": "spatial",
    "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}  # fmt: skip
DEEP_MOVQ = {
    "layers_per_block": 2, "block_out_channels": (64, 32, 96),
    "down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}  # fmt: skip


def movq(seed: int = 6, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import VQModel

    return awake(lambda: VQModel(**{**MOVQ, **changes}), seed, gain)


def unet(seed: int = 7, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return awake(lambda: UNet2DConditionModel(**{**UNET, **changes}), seed, gain)


def image_encoder(seed: int = 8) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": 8, "patch_size": 4, "projection_dim": DIM}  # fmt: skip
    return awake(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)), seed)


def scheduler(**changes):
    from diffusers import DDPMScheduler

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1, **changes}
    return DDPMScheduler(**settings)


def pipelines(folder: Path, inpaint: bool = False, gain: float = 0.5):
    """The prior's pipeline and the decoder's, in diffusers; saved in ``folder / "prior"`` and beside it."""
    from diffusers import (
        KandinskyV22InpaintPipeline,
        KandinskyV22Pipeline,
        KandinskyV22PriorPipeline,
        UnCLIPScheduler,
    )
    from transformers import CLIPImageProcessor

    tokens = tokenizer(folder / "words")
    first = KandinskyV22PriorPipeline(
        prior=prior(gain=gain),
        image_encoder=image_encoder(),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.5, 0.4, 0.3]
        ),
    )
    kind = KandinskyV22InpaintPipeline if inpaint else KandinskyV22Pipeline
    second = kind(
        unet=unet(gain=gain, in_channels=9 if inpaint else 4),
        scheduler=scheduler(),
        movq=movq(gain=0.3 * gain),
    )
    for name, pipeline in (("prior", first), ("decoder", second)):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(folder / "kandinsky" / name)
    return first, second
