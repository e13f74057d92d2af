"""Karlo's configurations -> ours: diffusers' config.json files, and what its authors' files do not tell.

Sampling is as published by kakaobrain/karlo (its "fast" setting): 25, 25 and 7 steps of ancestral
sampling, guidance 4 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from ...checkpoint import CheckpointError
from ...config import parse_config
from ...nets import PriorConfig, UNetConfig
from ...stages import DecoderStageConfig, LowRes, PriorStageConfig, Process, Sampling
from ..openai import adm

Values = Mapping[str, Any]  # of a config.json, or of the shapes in a file; our configurations check them


class Configs(TypedDict):
    prior: PriorStageConfig
    decoder: DecoderStageConfig
    upsampler: DecoderStageConfig


# What is written in the released model's config.json files; where they are silent, diffusers' defaults.
RELEASED: dict[str, Values] = {
    "prior": {},
    "decoder": {
        "sample_size": 64, "layers_per_block": 3, "in_channels": 3, "out_channels": 6,
        "block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1536, "attention_head_dim": 64,
        "down_block_types": ["ResnetDownsampleBlock2D", *3 * ["SimpleCrossAttnDownBlock2D"]],
        "up_block_types": [*3 * ["SimpleCrossAttnUpBlock2D"], "ResnetUpsampleBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "class_embed_type": "identity",
        "resnet_time_scale_shift": "scale_shift",
    },
    "text_proj": {"cross_attention_dim": 1536},
    "super_res_first": {
        "sample_size": 256, "layers_per_block": 3, "in_channels": 6, "out_channels": 3,
        "block_out_channels": [320, 640, 960, 1280], "add_attention": False,
        "down_block_types": 4 * ["ResnetDownsampleBlock2D"], "up_block_types": 4 * ["ResnetUpsampleBlock2D"],
    },
    "prior_scheduler": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder_scheduler": {"variance_type": "learned_range"},
    "super_res_scheduler": {},
}  # fmt: skip
RELEASED["super_res_last"] = RELEASED["super_res_first"]
# What our networks can do of what diffusers offers, where a config.json says anything of it.
ONLY: dict[str, dict[str, tuple]] = {
    "prior": {
        "additional_embeddings": (4,), "time_embed_act_fn": ("silu", "swish"), "norm_in_type": (None,),
        "embedding_proj_norm_type": (None,), "encoder_hid_proj_type": ("linear",),
        "added_emb_type": ("prd",),
    },
    "unet": {
        "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,),
        "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "norm_eps": (1e-5,),
        "time_embedding_type": ("positional",), "resnet_time_scale_shift": ("default", "scale_shift"),
        "only_cross_attention": (False,), "encoder_hid_dim": (None,), "dual_cross_attention": (False,),
        "addition_embed_type": (None,), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1,),
        "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "time_cond_proj_dim": (None,),
        "class_embeddings_concat": (False,), "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,), "attn_norm_num_groups": (None,),
    },
    "scheduler": {
        "_class_name": ("UnCLIPScheduler",), "beta_schedule": ("squaredcos_cap_v2",),
        "prediction_type": ("epsilon", "sample"), "variance_type": ("fixed_small_log", "learned_range"),
    },
}  # fmt: skip
# What must be said, since diffusers would do another thing if it were not.
NEEDED = {"class_embed_type": "identity", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}
DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}  # whether it attends
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}


def stage_configs(values: Mapping[str, Values], source: str = "Karlo") -> Configs:
    """Our stages, from what diffusers writes for each part of its pipeline, by the part's name.

    Raises CheckpointError for settings that are not among what our networks compute.
    """
    if differences := _differences(values["super_res_first"], values["super_res_last"]):
        raise CheckpointError(f"{source}: super_res_first and super_res_last differ in {differences}")
    schedulers = {part: values[f"{part}_scheduler"] for part in ("prior", "decoder", "super_res")}
    if schedulers["prior"].get("variance_type") == "learned_range":
        raise CheckpointError(f"{source}: the prior learns its variance, which Karlo's does not")
    for part in ("decoder", "super_res"):
        if schedulers[part].get("clip_sample", True) and schedulers[part].get("clip_sample_range", 1.0) != 1:
            raise CheckpointError(f"{source}: {part}_scheduler clamps pictures to another range than -1 to 1")
    processes = {
        part: _process(scheduler, f"{source}: {part}_scheduler") for part, scheduler in schedulers.items()
    }
    thresholds = {part: _threshold(scheduler) for part, scheduler in schedulers.items()}
    prior = prior_net(values["prior"], f"{source}: prior")
    decoder = decoder_net(values["decoder"], values["text_proj"], f"{source}: decoder")
    upsampler = upsampler_net(values["super_res_first"], f"{source}: super_res_first")
    clamp = schedulers["prior"].get("clip_sample_range", 1.0)
    return {
        "prior": prior_stage(prior, processes["prior"], clamp, thresholds["prior"]),
        "decoder": decoder_stage(decoder, processes["decoder"], thresholds["decoder"]),
        "upsampler": upsampler_stage(
            upsampler, decoder.image_size, processes["super_res"], thresholds["super_res"]
        ),
    }


def prior_stage(
    net: PriorConfig, process: Process, clamp: float, threshold: str = "static"
) -> PriorStageConfig:
    sampling = Sampling(sampler="ddpm", steps=25, guidance_scale=4.0, threshold=threshold)
    # No text that is left out becomes the empty text, from which its guidance starts: drop_text 0.
    return PriorStageConfig(
        net=net, process=process, sampling=sampling, drop_text=0.0, clamp=clamp, unit_norm=False
    )


def decoder_stage(net: UNetConfig, process: Process, threshold: str = "static") -> DecoderStageConfig:
    sampling = Sampling(sampler="ddpm", steps=25, guidance_scale=8.0, threshold=threshold)
    return DecoderStageConfig(net=net, process=process, sampling=sampling, drop_text=0.0, null_text="empty")


def upsampler_stage(
    net: UNetConfig, size: int, process: Process, threshold: str = "static"
) -> DecoderStageConfig:
    """size: of the picture that it enlarges."""
    return DecoderStageConfig(
        net=net,
        process=process,
        sampling=Sampling(sampler="ddpm", steps=7, threshold=threshold),
        low_res=LowRes(size=size, blur=0.0, interpolation="bicubic"),
        last_network=True,
    )


def prior_net(values: Values, source: str = "the prior") -> PriorConfig:
    _check(values, ONLY["prior"], {}, source)
    dim, heads = values.get("embedding_dim", 768), values.get("num_attention_heads", 32)
    width = heads * values.get("attention_head_dim", 64)
    return parse_config(
        PriorConfig,
        {
            "embed_dim": dim,
            "text_dim": dim,
            "text_length": values.get("num_embeddings", 77),
            "width": width,
            "heads": heads,
            "layers": values.get("num_layers", 20),
            "dropout": values.get("dropout", 0.0),
            "null_text": False,
        },
        source,
    )


def decoder_net(values: Values, text_proj: Values, source: str = "the decoder") -> UNetConfig:
    """The decoder's network with what diffusers has beside it, `text_proj`."""
    _check(values, ONLY["unet"], NEEDED, source)
    embed, context = text_proj.get("clip_embeddings_dim", 768), values.get("cross_attention_dim", 1280)
    if text_proj.get("cross_attention_dim") != context:
        raise CheckpointError(
            f"{source} takes a context of {context} channels, and text_proj makes "
            f"{text_proj.get('cross_attention_dim')}"
        )
    return parse_config(
        UNetConfig,
        {
            **_unet(values, source),
            "context_channels": context,
            "image_embed_dim": embed,
            "text_dim": embed,
            "text_embed_dim": embed,
            "image_tokens": text_proj.get("clip_extra_context_tokens", 4),
        },
        source,
    )


def upsampler_net(values: Values, source: str = "the upsampler") -> UNetConfig:
    _check(values, ONLY["unet"], {}, source)
    attends = values.get("add_attention", True)
    return parse_config(UNetConfig, {**_unet(values, source), "middle_attention": attends}, source)


def _unet(values: Values, source: str) -> dict[str, Any]:
    """What both kinds of U-Net have in common."""
    down, up = list(values.get("down_block_types", ())), list(values.get("up_block_types", ()))
    channels, size = list(values.get("block_out_channels", ())), values.get("sample_size")
    attends = [DOWN.get(kind) for kind in down]
    twins = [UP.get(kind) for kind in up[::-1]] == attends and len(channels) == len(down) > 0
    if None in attends or not twins:
        raise CheckpointError(
            f"{source} has the blocks {down} down and {up} up, of {channels} channels; "
            f"Karlo's are {sorted(DOWN)}, and on the way up likewise"
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
        "channel_mult": [_ratio(width, channels[0]) for width in channels], "num_res_blocks": count,
        "attention_resolutions": [size // 2**level for level, attend in enumerate(attends) if attend],
        **({"head_channels": head} if head else {"num_heads": 1}),
        "norm_groups": values.get("norm_num_groups", 32),
        "dropout": values.get("dropout", 0.0),
        "scale_shift": values.get("resnet_time_scale_shift", "default") == "scale_shift",
    }  # fmt: skip


def _ratio(width: int, channels: int) -> float:
    """What makes `width` of `channels` again, rounded down."""
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)


def _process(values: Values, source: str) -> Process:
    _check(values, ONLY["scheduler"], {}, source)
    learned = values.get("variance_type", "fixed_small_log") == "learned_range"
    predicts = {"epsilon": "eps", "sample": "x0"}[values.get("prediction_type", "epsilon")]
    return Process(
        timesteps=values.get("num_train_timesteps", 1000),
        predicts=predicts,
        variance="learned" if learned else "small",
        loss="hybrid" if learned else "simple",
    )


def _threshold(scheduler: Values) -> str:
    return "static" if scheduler.get("clip_sample", True) else "none"


def _check(values: Values, only: Mapping[str, tuple], needed: Mapping[str, object], source: str) -> None:
    wrong = [
        f"{key} {values[key]!r}"
        for key, accepted in only.items()
        if key in values and values[key] not in accepted
    ]
    wrong += [f"{key} {values.get(key)!r}" for key, value in needed.items() if values.get(key) != value]
    if wrong:
        raise CheckpointError(f"{source} is not of Karlo's kind: it has {', '.join(wrong)}")


def _differences(first: Values, last: Values) -> str:
    return ", ".join(
        sorted(key for key in {*first, *last} if not key.startswith("_") and first.get(key) != last.get(key))
    )


@dataclass(frozen=True)
class Untold:
    """What no shape in the original files tells; the released model's."""

    image_size: int = 64  # of the decoder's pictures, in pixels
    large_size: int = 256  # of the upsampler's
    head_channels: int = 64  # of an attention head, in every network
    clamp: float = 10.0  # of the prior's whitened coordinates


UNTOLD = Untold()


def original_configs(tensors: Mapping[str, Mapping[str, Tensor]], untold: Untold) -> Configs:
    """Our stages, from the shapes of the published tensors: of "prior", "decoder" and "upsampler".

    The prefixes of their names are gone; those of "upsampler" are of its first network.
    """
    prior, head = tensors["prior"], untold.head_channels
    length, width = prior["positional_embedding"].shape[-2:]
    net = PriorConfig(
        embed_dim=prior["clip_img_proj.weight"].shape[1],
        text_dim=prior["text_enc_proj.weight"].shape[1],
        text_length=length - 4,
        width=width,
        heads=width // head,
        null_text=False,
        layers=len({name.split(".")[2] for name in prior if name.startswith("transformer.resblocks.")}),
    )
    context, embed = tensors["decoder"]["text_seq_proj.0.weight"].shape
    decoder = _original_unet(
        tensors["decoder"],
        untold.image_size,
        head,
        context_channels=context,
        text_dim=embed,
        text_embed_dim=embed,
        image_embed_dim=embed,
        dropout=0.1,
        image_tokens=len(tensors["decoder"]["clip_tok_proj.bias"]) // context,
    )
    upsampler = _original_unet(tensors["upsampler"], untold.large_size, head, middle_attention=False)
    learned = Process(predicts="eps", variance="learned", loss="hybrid")
    return {
        "prior": prior_stage(net, Process(predicts="x0"), untold.clamp),
        "decoder": decoder_stage(decoder, learned),
        "upsampler": upsampler_stage(upsampler, decoder.image_size, Process(predicts="eps")),
    }


def _original_unet(tensors: Mapping[str, Tensor], size: int, head: int, **more: object) -> UNetConfig:
    config = adm.unet_config({"image_size": size, "num_head_channels": head}, tensors)
    return UNetConfig(**{**config.model_dump(), "text_project": True, **more})
