"""What the folders of diffusers' pipelines have in common: a part's settings and weights, U-Nets' blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import CheckpointError
from ..files import read_json
from .tensors import read

Values = Mapping[str, Any]  # of a config.json, or of the shapes in a file; our configurations check them
WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin",
)  # fmt: skip
# What our U-Net can do of what diffusers offers, where a config.json says anything of it.
UNET_ONLY: dict[str, tuple] = {
    "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,),
    "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "norm_eps": (1e-5,),
    "time_embedding_type": ("positional",), "resnet_time_scale_shift": ("default", "scale_shift"),
    "only_cross_attention": (False,), "encoder_hid_dim": (None,), "dual_cross_attention": (False,),
    "addition_embed_type": (None,), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "time_cond_proj_dim": (None,),
    "class_embeddings_concat": (False,), "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,), "attn_norm_num_groups": (None,),
}  # fmt: skip
DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}  # whether it attends
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}


def read_settings(path: Path) -> Values:
    try:
        return read_json(path, "a part's settings")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A part's tensors, from one file, or from several and their index."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = read_settings(index).get("weight_map")
            files = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
            if not files or any(Path(file).name != file for file in files):
                raise CheckpointError(f"{index} is damaged: its weight_map does not name files beside it")
            return {name: value for file in files for name, value in read(folder / file).items()}
    raise CheckpointError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)} is there")


def unet_values(values: Values, source: str) -> dict[str, Any]:
    """What both kinds of U-Net have in common."""
    down, up = list(values.get("down_block_types", ())), list(values.get("up_block_types", ()))
    channels, size = list(values.get("block_out_channels", ())), values.get("sample_size")
    attends = [DOWN.get(kind) for kind in down]
    twins = [UP.get(kind) for kind in up[::-1]] == attends and len(channels) == len(down) > 0
    if None in attends or not twins:
        raise CheckpointError(
            f"{source} has the blocks {down} down and {up} up, of {channels} channels; "
            f"ours are {sorted(DOWN)}, and on the way up likewise"
        )
    head, count = values.get("attention_head_dim", 8), values.get("layers_per_block", 2)
    head = head[0] if isinstance(head, list | tuple) and len({*head}) == 1 else head
    if not all(isinstance(value, int) for value in (size, head or 1, count)):
        raise CheckpointError(
            f"{source}: sample_size {size}, attention_head_dim {head} and layers_per_block "
            f"{count} must be one number each"
        )
    return {
        "image_size": size, "in_channels": values.get("in_channels", 3),
        "out_channels": values.get("out_channels", 3), "channels": channels[0],
        "channel_mult": [ratio(width, channels[0]) for width in channels], "num_res_blocks": count,
        "attention_resolutions": [size // 2**level for level, attend in enumerate(attends) if attend],
        **({"head_channels": head} if head else {"num_heads": 1}),
        "norm_groups": values.get("norm_num_groups", 32),
        "dropout": values.get("dropout", 0.0),
        "scale_shift": values.get("resnet_time_scale_shift", "default") == "scale_shift",
    }  # fmt: skip


def ratio(width: int, channels: int) -> float:
    """What makes `width` of `channels` again, rounded down."""
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)


def check(
    values: Values,
    only: Mapping[str, tuple],
    needed: Mapping[str, object],
    source: str,
    kind: str = "Karlo's",
) -> None:
    """Refuse a config.json that says another thing than our networks do; raises ``CheckpointError``."""
    wrong = [
        f"{key} {values[key]!r}"
        for key, accepted in only.items()
        if key in values and values[key] not in accepted
    ]
    wrong += [f"{key} {values.get(key)!r}" for key, value in needed.items() if values.get(key) != value]
    if wrong:
        raise CheckpointError(f"{source} is not of {kind} kind: it has {', '.join(wrong)}")
