"""The names of Karlo's tensors -> ours, as diffusers keeps them and as its authors published them.

All come out under the names of a whole stage: ``network.``, ``last.``, ``embed_mean``, ``embed_std``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...nets import UNetConfig
from ..openai import adm
from ..openai.names import KIND, TEXT_LAYERS, Renamed, prefixed
from ..tensors import Rules, renamed


def layer_rules(places: Mapping[str, str]) -> dict[str, str]:
    """Rules for layers, by their names: "a.b" -> "c" is of a.b.weight and a.b.bias."""
    return {re.escape(theirs) + KIND: rf"{ours}.\1" for theirs, ours in places.items()}


PRIOR = {
    "positional_embedding": "position", "prd_embedding": "query",
    "clip_mean": "embed_mean", "clip_std": "embed_std",
    **layer_rules({"time_embedding.linear_1": "time.0", "time_embedding.linear_2": "time.2",
               "proj_in": "image_embed", "embedding_proj": "text_embed",
               "encoder_hidden_states_proj": "text", "norm_out": "norm",
               "proj_to_clip_embeddings": "out"}),
}  # fmt: skip
PRIOR_BLOCK = {
    "norm1": "norm1", "attn1.to_q": "to_q", "attn1.to_k": "to_k", "attn1.to_v": "to_v",
    "attn1.to_out.0": "out", "norm3": "norm2", "ff.net.0.proj": "mlp.0", "ff.net.2": "mlp.2",
}  # fmt: skip
ORIGINAL_PRIOR = {
    "positional_embedding": "position", "prd_emb": "query",
    **layer_rules({"time_embed.0": "time.0", "time_embed.2": "time.2", "clip_img_proj": "image_embed",
               "text_emb_proj": "text_embed", "text_enc_proj": "text", "final_ln": "norm",
               "out_proj": "out"}),
}  # fmt: skip
UNET = layer_rules({
    "conv_in": "encoder.0.0", "time_embedding.linear_1": "time.0", "time_embedding.linear_2": "time.2",
    "conv_norm_out": "norm", "conv_out": "out",
})  # fmt: skip
RESNET = {
    "norm1": "norm1", "conv1": "conv1", "time_emb_proj": "emb",
    "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "skip",
}  # fmt: skip
ATTENTION = {
    "group_norm": "norm", "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "out",
    "add_k_proj": "add_k_proj", "add_v_proj": "add_v_proj",
}  # fmt: skip
TEXT_PROJ = {
    "learned_classifier_free_guidance_embeddings": "null_image",
    **layer_rules({"embedding_proj": "text_embed",
               "clip_image_embeddings_project_to_time_embeddings": "image_embed",
               "clip_extra_context_tokens_proj": "image_tokens",
               "encoder_hidden_states_proj": "text.0", "text_encoder_hidden_states_norm": "text.1"}),
}  # fmt: skip
ORIGINAL_TEXT_PROJ = {
    "cf_param": "null_image",
    **layer_rules({"text_feat_proj": "text_embed", "clip_emb": "image_embed", "clip_tok_proj": "image_tokens",
               "text_seq_proj.0": "text.0", "text_seq_proj.1": "text.1"}),
}  # fmt: skip
# What diffusers keeps apart and we hold as one layer, in which each head has its parts side by side.
JOINED = {"qkv": ("to_q", "to_k", "to_v"), "context_kv": ("add_k_proj", "add_v_proj")}


def prior(tensors: Mapping[str, Tensor], layers: int, heads: int, source: str) -> Renamed:
    """Of diffusers' PriorTransformer, which also holds the statistics of the embeddings."""
    places = {f"transformer_blocks.{i}": f"blocks.{i}" for i in range(layers)}
    ours, unused = renamed(tensors, {**PRIOR, **block_rules(places, PRIOR_BLOCK)}, source)
    return _of_prior(joined(ours, lambda channels: heads)), unused


def original_prior(tensors: Mapping[str, Tensor], layers: int, source: str) -> Renamed:
    """Of the published prior. Its queries, keys and values lie as ours do."""
    tensors, others = without("model.", tensors)
    places = {f"transformer.resblocks.{i}": f"blocks.{i}" for i in range(layers)}
    ours, unused = renamed(tensors, {**ORIGINAL_PRIOR, **block_rules(places, TEXT_LAYERS)}, source)
    return _of_prior(ours), [*others, *(f"model.{name}" for name in unused)]


def unet(tensors: Mapping[str, Tensor], config: UNetConfig, source: str, network: str = "network") -> Renamed:
    """Of diffusers' UNet2DConditionModel and UNet2DModel."""
    resnets, attentions = _places(config)
    rules = {**UNET, **block_rules(resnets, RESNET), **block_rules(attentions, ATTENTION)}
    ours, unused = renamed(tensors, rules, source)
    return prefixed(network, joined(ours, config.heads)), unused


def text_proj(tensors: Mapping[str, Tensor], source: str) -> Renamed:
    """Of diffusers' UnCLIPTextProjModel, which is a part of our decoder's U-Net."""
    ours, unused = renamed(tensors, TEXT_PROJ, source)
    return prefixed("network", ours), unused


def original_unet(
    tensors: Mapping[str, Tensor],
    config: UNetConfig,
    source: str,
    prefix: str = "model.",
    network: str = "network",
) -> Renamed:
    """Of the published decoder, or one of the upsampler's two networks: GLIDE's names, and some more."""
    tensors, others = without(prefix, tensors)
    ours, unknown = adm.unet(tensors, config, source=source)
    more, unused = renamed({name: tensors[name] for name in unknown}, ORIGINAL_TEXT_PROJ, source)
    return prefixed(network, {**ours, **more}), [*others, *(prefix + name for name in unused)]


def without(prefix: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Those whose names begin so, without that; and the names of the others."""
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return inside, [name for name in tensors if not name.startswith(prefix)]


def block_rules(places: Mapping[str, str], layers: Mapping[str, str]) -> Rules:
    """Rules for the layers of every block."""
    return layer_rules(
        {
            f"{theirs}.{layer}": f"{ours}.{named}"
            for theirs, ours in places.items()
            for layer, named in layers.items()
        }
    )


def _places(config: UNetConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Where diffusers' residual blocks, and its attention, are in our U-Net."""
    count, levels = config.num_res_blocks, len(config.widths)
    attends = [side in config.attention_resolutions for side in config.grid_sizes]
    resnets = {
        "mid_block.resnets.0": "middle.0",
        "mid_block.resnets.1": "middle.2" if config.middle_attention else "middle.1",
    }
    attentions = {"mid_block.attentions.0": "middle.1"} if config.middle_attention else {}

    def place(block: str, ours: str, first: int, blocks: int, attend: bool) -> None:
        for i in range(blocks):
            resnets[f"{block}.resnets.{i}"] = f"{ours}.{first + i}.0"
            if attend:
                attentions[f"{block}.attentions.{i}"] = f"{ours}.{first + i}.1"

    for i in range(levels):
        down, up, j = 1 + i * (count + 1), i * (count + 1), levels - 1 - i
        place(f"down_blocks.{i}", "encoder", down, count, attends[i])
        place(f"up_blocks.{i}", "decoder", up, count + 1, attends[j])
        if i < levels - 1:
            resnets[f"down_blocks.{i}.downsamplers.0"] = f"encoder.{down + count}.0"
            resnets[f"up_blocks.{i}.upsamplers.0"] = f"decoder.{up + count}.{2 if attends[j] else 1}"
    return resnets, attentions


def joined(tensors: dict[str, Tensor], heads_of: Callable[[int], int]) -> dict[str, Tensor]:
    """Queries, keys and values as one layer, ordered by head first.

    heads_of: channels -> heads. What is not there in full is left alone, for ``fill`` to complain of.
    """
    for layer, parts in JOINED.items():
        for name in [name for name in tensors if f".{parts[0]}." in name]:
            place, _, kind = name.partition(f".{parts[0]}.")
            names = [f"{place}.{part}.{kind}" for part in parts]
            heads = heads_of(len(tensors[name]))
            if all(n in tensors and tensors[n].shape == tensors[name].shape for n in names) and (
                len(tensors[name]) % heads == 0
            ):
                split = [tensors.pop(n).unflatten(0, (heads, -1)) for n in names]  # [H, D, ...] each
                tensors[f"{place}.{layer}.{kind}"] = torch.stack(split, dim=1).flatten(0, 2)
    return tensors


def _of_prior(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the stage; without the dimensions of size 1 that Karlo has in front."""
    shaped = {
        name: value.flatten(0, -2)
        if name == "position" and value.dim() > 2
        else value.flatten()
        if name in ("query", "embed_mean", "embed_std")
        else value
        for name, value in tensors.items()
    }
    return {name if name.startswith("embed_") else f"network.{name}": value for name, value in shaped.items()}
