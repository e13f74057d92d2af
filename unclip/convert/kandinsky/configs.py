"""Kandinsky's configurations, diffusers' config.json files -> ours."""

from __future__ import annotations

from ...checkpoint import CheckpointError
from ...config import parse_config
from ...nets.autoencoder import AutoencoderConfig
from ..diffusers_layout import Values, check, ratio

DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # whether it attends
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
# What our networks can do of what diffusers offers, where a config.json says anything of it.
ONLY: dict[str, dict[str, tuple]] = {
    "movq": {
        "in_channels": (3,), "out_channels": (3,), "act_fn": ("silu", "swish"),
        "norm_type": ("spatial", "group"),
        "mid_block_add_attention": (True,), "lookup_from_codebook": (False,),
    },
}  # fmt: skip


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
