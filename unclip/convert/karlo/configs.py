"""Karlo's configurations -> ours: diffusers' config.json files, and what its authors' files do not tell.

Sampling is as published by kakaobrain/karlo (its "fast" setting): 25, 25 and 7 steps of ancestral
sampling, guidance 4 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from ...checkpoint import CheckpointError
from ...config import parse_config
from ...nets import PriorConfig, UNetConfig
from ...stages import DecoderStageConfig, LowRes, PriorStageConfig, Process, Sampling
from ..diffusers_layout import UNET_ONLY, Values, check, unet_values
from ..openai import adm


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
    "scheduler": {
        "_class_name": ("UnCLIPScheduler",), "beta_schedule": ("squaredcos_cap_v2",),
        "prediction_type": ("epsilon", "sample"), "variance_type": ("fixed_small_log", "learned_range"),
    },
}  # fmt: skip
# What must be said, since diffusers would do another thing if it were not.
NEEDED = {"class_embed_type": "identity", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}


def stage_configs(values: Mapping[str, Values], source: str = "Karlo") -> Configs:
    """Our stages, from what diffusers writes for each part of its pipeline, by the part's name.

    Raises CheckpointError for settings that are not among what our networks compute.
    """
    if differences := _differences(values["super_res_first"], values["super_res_last"]):
        raise CheckpointError(f"{source}: super_res_first and super_res_last differ in {differences}")
    schedulers = {part: values[f"{part}_scheduler"] for part in ("prior", "decoder", "super_res")}
    for part in ("decoder", "super_res"):
        if schedulers[part].get("clip_sample", True) and schedulers[part].get("clip_sample_range", 1.0) != 1:
            raise CheckpointError(f"{source}: {part}_scheduler clamps pictures to another range than -1 to 1")
    prior = prior_of(values["prior"], schedulers.pop("prior"), f"{source}: prior")
    processes = {
        part: _process(scheduler, f"{source}: {part}_scheduler") for part, scheduler in schedulers.items()
    }
    thresholds = {part: _threshold(scheduler) for part, scheduler in schedulers.items()}
    decoder = decoder_net(values["decoder"], values["text_proj"], f"{source}: decoder")
    upsampler = upsampler_net(values["super_res_first"], f"{source}: super_res_first")
    return {
        "prior": prior,
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


def prior_of(values: Values, scheduler: Values, source: str) -> PriorStageConfig:
    """The stage that a prior is, with its scheduler."""
    if scheduler.get("variance_type") == "learned_range":
        raise CheckpointError(f"{source} learns its variance, which Karlo's does not")
    process = _process(scheduler, f"{source}_scheduler")
    clamp = scheduler.get("clip_sample_range", 1.0)
    return prior_stage(prior_net(values, source), process, clamp, _threshold(scheduler))


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
    check(values, ONLY["prior"], {}, source)
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
    check(values, UNET_ONLY, NEEDED, source)
    embed, context = text_proj.get("clip_embeddings_dim", 768), values.get("cross_attention_dim", 1280)
    if text_proj.get("cross_attention_dim") != context:
        raise CheckpointError(
            f"{source} takes a context of {context} channels, and text_proj makes "
            f"{text_proj.get('cross_attention_dim')}"
        )
    return parse_config(
        UNetConfig,
        {
            **unet_values(values, source),
            "context_channels": context,
            "image_embed_dim": embed,
            "text_dim": embed,
            "text_embed_dim": embed,
            "image_tokens": text_proj.get("clip_extra_context_tokens", 4),
        },
        source,
    )


def upsampler_net(values: Values, source: str = "the upsampler") -> UNetConfig:
    check(values, UNET_ONLY, {}, source)
    attends = values.get("add_attention", True)
    return parse_config(UNetConfig, {**unet_values(values, source), "middle_attention": attends}, source)


def _process(values: Values, source: str) -> Process:
    check(values, ONLY["scheduler"], {}, source)
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
    decoder = _originalunet_values(
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
    upsampler = _originalunet_values(tensors["upsampler"], untold.large_size, head, middle_attention=False)
    learned = Process(predicts="eps", variance="learned", loss="hybrid")
    return {
        "prior": prior_stage(net, Process(predicts="x0"), untold.clamp),
        "decoder": decoder_stage(decoder, learned),
        "upsampler": upsampler_stage(upsampler, decoder.image_size, Process(predicts="eps")),
    }


def _originalunet_values(tensors: Mapping[str, Tensor], size: int, head: int, **more: object) -> UNetConfig:
    config = adm.unet_config({"image_size": size, "num_head_channels": head}, tensors)
    return UNetConfig(**{**config.model_dump(), "text_project": True, **more})
