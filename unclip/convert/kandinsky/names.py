"""The names of Kandinsky's tensors, as diffusers keeps them -> ours.

All come out under the names of a whole stage: ``network.``, ``autoencoder.``, ``embed_mean``, ``embed_std``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...nets import UNetConfig
from ...nets.autoencoder import AutoencoderConfig
from ..karlo import names as karlo
from ..karlo.names import block_rules, joined, layer_rules
from ..openai.names import Renamed, prefixed
from ..tensors import linear, renamed

AUTOENCODER = {
    **layer_rules({"encoder.conv_in": "encoder.first", "encoder.conv_out": "encoder.out",
                   "decoder.conv_in": "decoder.first", "decoder.conv_out": "decoder.out",
                   "quant_conv": "to_latent", "post_quant_conv": "from_latent"}),
}  # fmt: skip
NORM = {"": "norm", ".norm_layer": "norm", ".conv_y": "scale", ".conv_b": "shift"}  # plain, or by the latent
RESNET = {"conv1": "conv1", "conv2": "conv2", "conv_shortcut": "skip", "conv": "conv"}
ATTENTION = {  # and as they were called until 2023
    "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "out",
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "out",
}  # fmt: skip
IMAGE = layer_rules({
    "encoder_hid_proj.image_embeds": "image_tokens", "encoder_hid_proj.norm": "image_norms.tokens",
    "add_embedding.image_proj": "image_embed", "add_embedding.image_norm": "image_norms.embed",
})  # fmt: skip
CODES = "quantize.embedding.weight"  # by which it was trained; latents are decoded as they come


def autoencoder(
    tensors: Mapping[str, Tensor], config: AutoencoderConfig, source: str, prefix: str = "autoencoder"
) -> Renamed:
    """Of diffusers' VQModel, of which the codebook is left out."""
    resnets, attentions = _places(config)
    norms = {
        **{f"{theirs}.{norm}": f"{ours}.{norm}" for theirs, ours in resnets.items()
           for norm in ("norm1", "norm2")},
        **{f"{theirs}.{norm}": f"{ours}.norm" for theirs, ours in attentions.items()
           for norm in ("group_norm", "spatial_norm")},
        **{f"{half}.conv_norm_out": f"{half}.norm" for half in ("encoder", "decoder")},
    }  # fmt: skip
    rules = {
        **AUTOENCODER,
        **block_rules(resnets, RESNET),
        **block_rules(attentions, ATTENTION),
        **layer_rules(
            {f"{a}{b}": f"{ours}.{named}" for a, ours in norms.items() for b, named in NORM.items()}
        ),
    }
    ours, unused = renamed(tensors, rules, source)
    ours = {name: linear(value) if ".to_" in name or ".out." in name and "layers" in name else value
            for name, value in ours.items()}  # fmt: skip
    return prefixed(prefix, joined(ours, lambda channels: 1)), [name for name in unused if name != CODES]


def decoder(tensors: Mapping[str, Tensor], config: UNetConfig, source: str) -> Renamed:
    """Of diffusers' UNet2DConditionModel, but for the null embedding, which is no weight of it.

    Half of what it puts out is a variance that Kandinsky's process does not use, and is left out here.
    """
    ours, unknown = karlo.unet(tensors, config, source)
    more, unused = renamed({name: tensors[name] for name in unknown}, IMAGE, source)
    for name in ("image_tokens.weight", "image_tokens.bias"):  # of each token all channels, in theirs
        if name in more and len(more[name]) == config.image_tokens * (config.context_channels or 0):
            more[name] = more[name].unflatten(0, (config.image_tokens, -1)).transpose(0, 1).flatten(0, 1)
    for name in ("network.out.weight", "network.out.bias"):
        if name in ours and len(ours[name]) == 2 * config.out_channels:
            ours[name] = ours[name][: config.out_channels].clone()
    return {**ours, **prefixed("network", more)}, unused


def _places(config: AutoencoderConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Where diffusers' residual blocks, resamplers among them, and its attention are in our autoencoder."""
    resnets: dict[str, str] = {}
    attentions: dict[str, str] = {}
    levels, count = len(config.widths), config.num_res_blocks
    at = {"encoder": 0, "decoder": 0}

    def add(table: dict[str, str], half: str, theirs: str) -> None:
        table[f"{half}.{theirs}"] = f"{half}.layers.{at[half]}"
        at[half] += 1

    def middle(half: str) -> None:
        add(resnets, half, "mid_block.resnets.0")
        add(attentions, half, "mid_block.attentions.0")
        add(resnets, half, "mid_block.resnets.1")

    def level(half: str, block: str, blocks: int, attends: bool, resampler: str | None) -> None:
        for i in range(blocks):
            add(resnets, half, f"{block}.resnets.{i}")
            if attends:
                add(attentions, half, f"{block}.attentions.{i}")
        if resampler:
            add(resnets, half, f"{block}.{resampler}.0")

    for i in range(levels):
        last = i == levels - 1
        level(
            "encoder",
            f"down_blocks.{i}",
            count,
            i + 1 in config.attention_levels,
            None if last else "downsamplers",
        )
    middle("encoder")
    middle("decoder")
    for i in range(levels):
        last = i == levels - 1
        level(
            "decoder",
            f"up_blocks.{i}",
            count + 1,
            levels - i in config.attention_levels,
            None if last else "upsamplers",
        )
    return resnets, attentions
