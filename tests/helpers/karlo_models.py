"""Karlo in diffusers' own code, small and with random weights, and its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip.diffusion.schedule import Schedule

DIM, LENGTH = 16, 12  # of the embeddings; tokens of a text
WORDS = ["cat", "dog", "fish", "red"]
PRIOR = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": DIM,
         "num_embeddings": LENGTH}  # fmt: skip
DECODER = {
    "sample_size": 16, "layers_per_block": 1, "in_channels": 3, "out_channels": 6,
    "block_out_channels": (32, 64), "cross_attention_dim": 24, "attention_head_dim": 16,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
TEXT_PROJ = {"time_embed_dim": 128, "cross_attention_dim": 24, "clip_embeddings_dim": DIM}
SUPER_RES = {
    "sample_size": 32, "layers_per_block": 1, "in_channels": 6, "out_channels": 3,
    "block_out_channels": (32, 64), "add_attention": False,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
}  # fmt: skip


def close(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    """Within a share of the largest value."""
    assert ours.shape == theirs.shape and theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= share * theirs.abs().max()


def exact(scheduler, schedule: Schedule) -> None:
    """Give one of diffusers' schedulers tables of float64, as ours has and the authors' own code.

    Theirs are float32, in which beta / (1 - (1 - beta)) is 1.0006 at cosine's first level.
    """
    alpha_bar = schedule.alpha**2
    scheduler.alphas_cumprod, scheduler.alphas = alpha_bar[1:], alpha_bar[1:] / alpha_bar[:-1]
    scheduler.betas, scheduler.one = 1 - scheduler.alphas, alpha_bar[0]


def awake(make: Callable[[], nn.Module], seed: int, gain: float = 1.0) -> nn.Module:
    """A model with random weights everywhere, layers that begin as zeros too; the seed tells them all.

    gain: of a layer, from the size of what comes in to that of what goes out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=g)
            if name.endswith("clip_std"):
                value.copy_(0.5 + noise.abs())
            elif value.dim() > 1 and "embedding" not in name:
                value.copy_(gain * noise * value[0].numel() ** -0.5)
            else:
                value.add_(0.3 * gain * noise)
    return model.eval().requires_grad_(False)


def prior(seed: int = 1, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import PriorTransformer

    return awake(lambda: PriorTransformer(**{**PRIOR, **changes}), seed, gain)


def decoder(seed: int = 2, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return awake(lambda: UNet2DConditionModel(**{**DECODER, **changes}), seed, gain)


def text_proj(seed: int = 3, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return awake(lambda: UnCLIPTextProjModel(**{**TEXT_PROJ, **changes}), seed, gain)


def super_res(seed: int = 4, gain: float = 1.0, **changes) -> nn.Module:
    from diffusers import UNet2DModel

    return awake(lambda: UNet2DModel(**{**SUPER_RES, **changes}), seed, gain)


def tokenizer(folder: Path):
    """CLIP's tokenizer of a few words; it pads with "!", as Karlo's does."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    merges, pieces = [], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    vocabulary = [
        "!",
        *letters,
        *(letter + "</w>" for letter in letters),
        *pieces,
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=LENGTH
    )


def text_encoder(tokens, seed: int = 5, **changes) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {
        "hidden_size": DIM,
        "intermediate_size": 2 * DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "projection_dim": DIM,
        **changes,
    }
    return awake(
        lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokens),
                eos_token_id=tokens.eos_token_id,
                bos_token_id=tokens.bos_token_id,
                pad_token_id=0,
                **sizes,
            )
        ),
        seed,
    )


def pipeline(folder: Path, gain: float = 1.0, **prior_changes):
    """A whole UnCLIPPipeline; a folder is needed for the tokenizer's files."""
    from diffusers import UnCLIPPipeline, UnCLIPScheduler

    tokens = tokenizer(folder)
    theirs = UnCLIPPipeline(
        prior=prior(gain=gain, **prior_changes),
        decoder=decoder(gain=gain),
        text_proj=text_proj(gain=gain),
        super_res_first=super_res(4, gain),
        super_res_last=super_res(5, gain),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs


def saved(folder: Path, **settings):
    """A pipeline, and where in the folder it saved itself."""
    theirs = pipeline(folder / "words", **settings)
    theirs.save_pretrained(folder / "karlo")
    return theirs, folder / "karlo"
