"""Karlo's published files, written from diffusers' models, by the names of kakaobrain/karlo's code."""

from __future__ import annotations

import re
from pathlib import Path

import karlo_models as small
import torch
from torch import Tensor, nn

from unclip.clip import build_clip
from unclip.convert.karlo import configs

HEAD = 16  # channels of every head in the tests' published files
TOLD = configs.Untold(image_size=16, large_size=32, head_channels=HEAD)
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
PRIOR = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "proj_in": "clip_img_proj", "embedding_proj": "text_emb_proj", "norm_out": "final_ln",
    "encoder_hidden_states_proj": "text_enc_proj", "proj_to_clip_embeddings": "out_proj",
    "positional_embedding": "positional_embedding", "prd_embedding": "prd_emb",
}  # fmt: skip
PRIOR_BLOCK = {
    "norm1": "ln_1",
    "norm3": "ln_2",
    "attn1.to_out.0": "attn.c_proj",
    "ff.net.0.proj": "mlp.c_fc",
    "ff.net.2": "mlp.c_proj",
}
TEXT_PROJ = {
    "learned_classifier_free_guidance_embeddings": "cf_param", "embedding_proj": "text_feat_proj",
    "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
    "clip_extra_context_tokens_proj": "clip_tok_proj", "encoder_hidden_states_proj": "text_seq_proj.0",
    "text_encoder_hidden_states_norm": "text_seq_proj.1",
}  # fmt: skip


def rows(parts: list[Tensor], heads: int) -> Tensor:
    """Each head's queries, then its keys, then its values, and so on for the next head."""
    return torch.cat([part.chunk(heads)[head] for head in range(heads) for part in parts])


def split(name: str) -> tuple[str, str]:
    """a.b.weight -> a.b and .weight; what is no layer -> itself."""
    layer, _, kind = name.rpartition(".")
    return (layer, f".{kind}") if kind in ("weight", "bias") else (name, "")


def prior(model: nn.Module) -> dict[str, Tensor]:
    state, heads, renamed = model.state_dict(), model.config.num_attention_heads, {}
    for name, value in state.items():
        layer, kind = split(name)
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)", layer)
        if block is None and layer in PRIOR:
            renamed[PRIOR[layer] + kind] = value
        elif block and block[2] in PRIOR_BLOCK:
            renamed[f"transformer.resblocks.{block[1]}.{PRIOR_BLOCK[block[2]]}{kind}"] = value
        elif block and block[2] == "attn1.to_q":
            parts = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            renamed[f"transformer.resblocks.{block[1]}.attn.c_qkv{kind}"] = rows(parts, heads)
    return renamed


def unet(model: nn.Module) -> dict[str, Tensor]:
    state, renamed = model.state_dict(), {}
    for name, value in state.items():
        layer, kind = split(name)
        if layer in TOP:
            renamed[TOP[layer] + kind] = value
            continue
        kinds = "resnets|attentions|downsamplers|upsamplers"
        where, part = re.fullmatch(rf"(.*(?:{kinds})\.\d+)\.(.*)", layer).groups()
        place = block(where, model.config)
        if part in RESNET:
            renamed[f"{place}.{RESNET[part]}{kind}"] = value
        elif part in ("group_norm", "to_out.0"):
            name = "norm" if part == "group_norm" else "proj_out"
            renamed[f"{place}.{name}{kind}"] = conv(value, kind, part)
        elif part in ("to_q", "add_k_proj"):
            parts = ("to_q", "to_k", "to_v") if part == "to_q" else ("add_k_proj", "add_v_proj")
            heads = len(value) // model.config.attention_head_dim
            joined = rows([state[name.replace(part, other)] for other in parts], heads)
            renamed[f"{place}.{'qkv' if part == 'to_q' else 'encoder_kv'}{kind}"] = conv(joined, kind, part)
    return renamed


def conv(value: Tensor, kind: str, part: str) -> Tensor:
    """Attention's layers are convolutions over the pixels in a row."""
    return value[..., None] if kind == ".weight" and part != "group_norm" else value


def block(where: str, config) -> str:
    """down_blocks.1.resnets.0 -> input_blocks.4.0"""
    count = config.layers_per_block
    if where.startswith("mid_block"):
        middle = 2 if "Simple" in str(config.mid_block_type) else 1
        return {
            "mid_block.resnets.0": "middle_block.0",
            "mid_block.attentions.0": "middle_block.1",
            "mid_block.resnets.1": f"middle_block.{middle}",
        }[where]
    side, level, kind, i = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", where).groups()
    level, i = int(level), int(i)
    if side == "down":
        number = 1 + level * (count + 1) + (count if kind == "downsamplers" else i)
        return f"input_blocks.{number}.{int(kind == 'attentions')}"
    number = level * (count + 1) + (count if kind == "upsamplers" else i)
    attends = "Attn" in config.up_block_types[level]
    return f"output_blocks.{number}.{ {'resnets': 0, 'attentions': 1, 'upsamplers': 1 + attends}[kind] }"


def text_proj(model: nn.Module) -> dict[str, Tensor]:
    return {TEXT_PROJ[split(name)[0]] + split(name)[1]: value for name, value in model.state_dict().items()}


def save(folder: Path, pipeline, clip: dict[str, Tensor], program: bool) -> None:
    """All five files. clip: tensors under OpenAI's names. program: whether as TorchScript, as published."""

    def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {prefix + name: value.clone() for name, value in tensors.items()}

    folder.mkdir(parents=True)
    decoder = prefixed({**unet(pipeline.decoder), **text_proj(pipeline.text_proj)}, "model.")
    enlarging = {
        **prefixed(unet(pipeline.super_res_first), "model_first_steps."),
        **prefixed(unet(pipeline.super_res_last), "model_last_step."),
    }
    torch.save(
        {"state_dict": prefixed(prior(pipeline.prior), "model.")},
        folder / "prior-ckpt-step=01000000-of-01000000.ckpt",
    )
    torch.save({"state_dict": decoder}, folder / "decoder-ckpt-step=01000000-of-01000000.ckpt")
    torch.save({"state_dict": enlarging}, folder / "improved-sr-ckpt-step=1.2M.ckpt")
    torch.save(
        (pipeline.prior.clip_mean.data[0].clone(), pipeline.prior.clip_std.data[0].clone()),
        folder / "ViT-L-14_stats.th",
    )
    if program:
        torch.jit.script(boxed(clip)).save(folder / "ViT-L-14.pt")
    else:
        torch.save(clip, folder / "ViT-L-14.pt")


class Box(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def boxed(tensors: dict[str, Tensor]) -> Box:
    """A module that holds tensors under dotted names."""
    root = Box()
    for name, value in tensors.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, Box())
            at = getattr(at, part)
        at.register_buffer(last, value)
    return root


def openai_clip() -> dict[str, Tensor]:
    """Tensors of a small CLIP under OpenAI's names, with the numbers that its file adds to them."""
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": HEAD}
    text = {"context_length": small.LENGTH, "width": small.DIM, "layers": 2, "heads": small.DIM // HEAD}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = build_clip(
            {"embed_dim": small.DIM, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
        )
    numbers = {"input_resolution": 16, "context_length": small.LENGTH, "vocab_size": 49408}
    return {**clip.towers.model.state_dict(), **{name: torch.tensor(n) for name, n in numbers.items()}}
