"""Kandinsky's configurations, diffusers' config.json files -> ours."""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint import CheckpointError
from ...config import parse_config
from ...nets import UNetConfig
from ...nets.autoencoder import AutoencoderConfig
from ...stages import DecoderStageConfig, PriorStageConfig, Process, Sampling
from ..diffusers_layout import UNET_ONLY, Values, check, ratio, unet_values
from ..karlo import configs as karlo

# What is written in the released model's config.json files; where they are silent, diffusers' defaults.
RELEASED: dict[str, Values] = {
    "prior": {"embedding_dim": 1280},
    "prior_scheduler": {"prediction_type": "sample", "clip_sample_range": 10.0},
    "unet": {
        "sample_size": 64, "in_channels": 4, "out_channels": 8, "block_out_channels": [384, 768, 1152, 1536],
        "layers_per_block": 3, "attention_head_dim": 64, "cross_attention_dim": 768, "encoder_hid_dim": 1280,
        "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image",
        "down_block_types": ["ResnetDownsampleBlock2D", *3 * ["SimpleCrossAttnDownBlock2D"]],
        "up_block_types": [*3 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
    },
    "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1},
    "movq": {
        "latent_channels": 4, "vq_embed_dim": 4, "layers_per_block": 2, "norm_type": "spatial",
        "block_out_channels": [128, 256, 256, 512],
        "down_block_types": [*3 * ["DownEncoderBlock2D"], "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", *3 * ["UpDecoderBlock2D"]],
    },
}  # fmt: skip
TOKENS = 32  # that are made of an image embedding; no config.json says it
STEPS = 100  # of its own pipelines
DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # whether it attends
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
# What our networks can do of what diffusers offers, where a config.json says anything of it.
ONLY: dict[str, dict[str, tuple]] = {
    "movq": {
        "in_channels": (3,), "out_channels": (3,), "act_fn": ("silu", "swish"),
        "norm_type": ("spatial", "group"),
        "mid_block_add_attention": (True,), "lookup_from_codebook": (False,),
    },
    "unet": {
        **{name: accepted for name, accepted in UNET_ONLY.items()
           if name not in ("encoder_hid_dim", "addition_embed_type")}, "class_embed_type": (None,),
    },
    "scheduler": {
        "_class_name": ("DDPMScheduler",), "beta_schedule": ("linear",), "beta_start": (0.00085,),
        "beta_end": (0.012,), "trained_betas": (None,), "prediction_type": ("epsilon",),
        "variance_type": ("fixed_small",), "thresholding": (False,), "timestep_spacing": ("leading",),
        "rescale_betas_zero_snr": (False,),
    },
}  # fmt: skip


# What must be said, since diffusers would do another thing if it were not.
NEEDED: dict[str, dict[str, object]] = {
    "unet": {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image",
             "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False},
}  # fmt: skip


def prior_stage(values: Mapping[str, Values], source: str = "Kandinsky") -> PriorStageConfig:
    """Karlo's prior, wider; values: by part, its own and its scheduler's."""
    return karlo.prior_of(values["prior"], values["prior_scheduler"], f"{source}: prior")


def decoder_stage(
    values: Mapping[str, Values], tokens: int = TOKENS, source: str = "Kandinsky"
) -> DecoderStageConfig:
    """A U-Net of latents with its autoencoder; values: by part, "unet", "scheduler" and "movq"."""
    scheduler, movq = values["scheduler"], autoencoder_net(values["movq"], f"{source}: movq")
    check(scheduler, ONLY["scheduler"], NEEDED["scheduler"], f"{source}: scheduler", "Kandinsky's")
    net = decoder_net(values["unet"], movq.latent_channels, tokens, f"{source}: unet")
    inpaint = net.in_channels != movq.latent_channels
    process = Process(schedule="linear-latent", timesteps=scheduler.get("num_train_timesteps", 1000))
    offset = f"+{scheduler['steps_offset']}" if scheduler.get("steps_offset") else ""
    steps = f"leading{min(STEPS, process.timesteps)}{offset}"
    sampling = Sampling(sampler="ddpm", steps=steps, guidance_scale=4.0, threshold="none")
    return parse_config(
        DecoderStageConfig,
        {"net": net, "process": process, "sampling": sampling, "inpaint": inpaint, "autoencoder": movq},
        source,
    )


def decoder_net(values: Values, latent: int, tokens: int = TOKENS, source: str = "the decoder") -> UNetConfig:
    """Of diffusers' UNet2DConditionModel; latent: channels of what it denoises."""
    check(values, ONLY["unet"], NEEDED["unet"], source, "Kandinsky's")
    if values.get("out_channels", 4) not in (latent, 2 * latent):
        raise CheckpointError(f"{source} makes {values.get('out_channels', 4)} channels of {latent} latents")
    return parse_config(
        UNetConfig,
        {
            **unet_values(values, source),
            "out_channels": latent,
            "context_channels": values.get("cross_attention_dim", 1280),
            "image_embed_dim": values.get("encoder_hid_dim"),
            "image_tokens": tokens,
            "image_norm": True,
        },
        source,
    )


def autoencoder_net(values: Values, source: str = "the autoencoder") -> AutoencoderConfig:
    """Of diffusers' VQModel. Its ``scaling_factor`` is not used, as in Kandinsky's own pipelines."""
    check(values, ONLY["movq"], {}, source, "Kandinsky's")
    down, up = list(values.get("down_block_types", ())), list(values.get("up_block_types", ()))
    channels, latent = list(values.get("block_out_channels", ())), values.get("latent_channels", 3)
    attends = [DOWN.get(kind) for kind in down]
    twins = [UP.get(kind) for kind in up[::-1]] == attends and len(channels) == len(down) > 0
    if None in attends or not twins:
        raise CheckpointError(
            f"{source} has the blocks {down} down and {up} up, of {channels} channels; "
            f"Kandinsky's are {sorted(DOWN)}, and on the way up likewise"
        )
    if values.get("vq_embed_dim") not in (None, latent):
        raise CheckpointError(
            f"{source} has codes of {values['vq_embed_dim']} numbers and latents of {latent}; they "
            "must be as many"
        )
    return parse_config(
        AutoencoderConfig,
        {
            "channels": channels[0],
            "channel_mult": [ratio(width, channels[0]) for width in channels],
            "num_res_blocks": values.get("layers_per_block", 1),
            "attention_levels": [level for level, attend in enumerate(attends, 1) if attend],
            "latent_channels": latent,
            "modulated": values.get("norm_type", "group") == "spatial",
            "norm_groups": values.get("norm_num_groups", 32),
        },
        source,
    )
