"""Names of OpenAI's public weights -> ours: U-Nets, GLIDE's text transformer and noised CLIP, classifiers.

guided-diffusion (Dhariwal & Nichol 2021), improved-diffusion (Nichol & Dhariwal 2021) and glide-text2im
(Nichol et al. 2021) share their U-Net. But for names, only the order of the channels that make queries,
keys and values differs from ours, and that in ADM-64 alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from einops import rearrange
from torch import Tensor

from ...nets import ClassifierConfig, UNetConfig
from ...nets.encoder import EncoderConfig
from ..tensors import Rules, linear, renamed

Renamed = tuple[dict[str, Tensor], list[str]]
"""Tensors by our names, and the names of those that are none of the network's."""
PLACES = {
    r"input_blocks\.(\d+\.\d+)": "encoder",
    r"middle_block\.(\d+)": "middle",
    r"output_blocks\.(\d+\.\d+)": "decoder",
}
LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "emb", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "skip", "norm": "norm", "qkv": "qkv",
    "encoder_kv": "context_kv", "proj_out": "out", "op": "conv", "conv": "conv",
}  # fmt: skip
KIND = r"\.(weight|bias)"
BLOCKS = {
    r"time_embed\.([02])" + KIND: r"time.\1.\2",
    r"input_blocks\.0\.0" + KIND: r"encoder.0.0.\1",
    **{rf"{place}\.{re.escape(layer)}{KIND}": rf"{mine}.\1.{ours}.\2"
       for place, mine in PLACES.items() for layer, ours in LAYERS.items()},
    r"out\.0" + KIND: r"norm.\1",
}  # fmt: skip
UNET = {
    **BLOCKS,
    r"out\.2" + KIND: r"out.\1",
    r"label_emb\.weight": "classes.weight",
    r"transformer_proj" + KIND: r"text_embed.\1",
}
POOLS = {
    "attention": {**BLOCKS, r"out\.2\.positional_embedding": "pool.position",
                  r"out\.2\.qkv_proj" + KIND: r"pool.qkv.\1", r"out\.2\.c_proj" + KIND: r"pool.out.\1"},
    "adaptive": {**BLOCKS, r"out\.3" + KIND: r"pool.\1"},
    "spatial": {r"out\.([02])" + KIND: r"pool.\1.\2", **BLOCKS},
    "spatial_v2": {r"out\.([013])" + KIND: r"pool.\1.\2", **BLOCKS},
}  # fmt: skip
TEXT_LAYERS = {  # of Karlo's prior, too
    "attn.c_qkv": "qkv", "attn.c_proj": "out", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}  # fmt: skip
TEXT = {
    **{rf"transformer\.resblocks\.(\d+)\.{re.escape(layer)}{KIND}": rf"blocks.\1.{ours}.\2"
       for layer, ours in TEXT_LAYERS.items()},
    r"final_ln" + KIND: r"norm.\1", r"token_embedding\.weight": "token.weight",
    r"positional_embedding": "position", r"padding_embedding": "padding",
}  # fmt: skip


def _tower() -> Rules:
    """Either half of the noised CLIP: `w` is a weight, `g` a norm's, `b` a bias."""
    layers = {
        "f_attn.ln": "norm1", "f_attn.f_q": "q", "f_attn.f_k": "k", "f_attn.f_v": "v",
        "f_attn.f_c": "out", "f_mlp.ln": "norm2", "f_mlp.f_1": "mlp.0", "f_mlp.f_2": "mlp.2",
    }  # fmt: skip
    places = {
        **{rf"block_(\d+)\.{re.escape(layer)}": rf"blocks.\1.{ours}" for layer, ours in layers.items()},
        r"input\.ln": "norm_in",
        r"output\.ln": "norm",
        r"output\.f": "out",
    }
    kinds = {"[wg]": "weight", "b": "bias"}
    whole = {"w_voc": "token.weight", "w_pos": "position", "w_t": "time.weight",
             "patch_proj": "patches.weight"}  # fmt: skip
    return {**{rf"blocks\.{place}\.{kind}": f"{ours}.{named}"
               for place, ours in places.items() for kind, named in kinds.items()},
            **{rf"blocks\.input\.{name}": ours for name, ours in whole.items()}}  # fmt: skip


TOWER = _tower()


def unet(
    tensors: Mapping[str, Tensor], config: UNetConfig, new_order: bool = False, source: str = "the file"
) -> Renamed:
    """A public U-Net's tensors for `nets.UNet(config)`.

    new_order: the model was built with `use_new_attention_order`, which no shape tells: its channels
        are queries, keys, values first, and heads within each (ADM-64 alone).
    """
    ours, unused = renamed(tensors, UNET, source)
    return _ordered(ours, config, new_order), unused


def classifier(
    tensors: Mapping[str, Tensor], config: ClassifierConfig, new_order: bool = False, source: str = "the file"
) -> Renamed:
    """A public classifier's tensors for `nets.NoisedClassifier(config)`."""
    ours, unused = renamed(tensors, POOLS[config.pool], source)
    return _ordered(ours, config, new_order), unused


def text(tensors: Mapping[str, Tensor], source: str = "the file") -> Renamed:
    """The tensors of GLIDE's text transformer, for `nets.TextTransformer`."""
    return renamed(tensors, TEXT, source)


def tower(tensors: Mapping[str, Tensor], source: str = "the file") -> Renamed:
    """The tensors of one half of GLIDE's noised CLIP, for `nets.noised_clip.ImageTower` or `TextTower`."""
    return renamed(tensors, TOWER, source)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors of a part, as a whole names them."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _ordered(tensors: dict[str, Tensor], config: EncoderConfig, new_order: bool) -> dict[str, Tensor]:
    """1x1 convolutions as linear layers; queries, keys and values by head first."""
    tensors = {name: linear(value) if _is_linear(name) else value for name, value in tensors.items()}
    if new_order:
        for name, value in tensors.items():
            if ".qkv." in name and not name.startswith("pool."):
                heads = config.heads(len(value) // 3, up=name.startswith("decoder."))
                tensors[name] = rearrange(value, "(three h d) ... -> (h three d) ...", three=3, h=heads)
    return tensors


def _is_linear(name: str) -> bool:
    return name.endswith((".qkv.weight", ".context_kv.weight", ".out.weight")) or name == "pool.weight"
