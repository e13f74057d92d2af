"""A model as public ones are: tiny, with a tokenizer and a guide of its own, and pictures to inpaint."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path

import torch
from PIL import Image
from tiny import TEXT, glide, seeded

from unclip.data.images import to_pil
from unclip.guides.noised_clip import NoisedClip, NoisedClipStageConfig
from unclip.nets.noised_clip import NoisedClipConfig, TowerConfig
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Sampling
from unclip.stages.tokenizer import ENCODER, VOCAB, GlideTokenizer

FEW = Sampling(sampler="ddpm", steps=3, guidance_scale=3.0, gradient="mean")


def tokenizer() -> GlideTokenizer:
    """Letters, a space, "ca" as one, and the end of text: six tokens a text."""
    known = [*string.ascii_lowercase, "Ġ", "ca", "<|endoftext|>"]
    return GlideTokenizer({piece: number for number, piece in enumerate(known)}, [("c", "a")], TEXT["length"])


def guide(size: int = 8) -> NoisedClip:
    tower = TowerConfig(width=8, layers=1, heads=2)
    net = NoisedClipConfig(
        embed_dim=8,
        image=tower,
        image_size=size,
        patch_size=4,
        text=tower,
        vocab_size=49408,
        length=16,
        logit_scale=10.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NoisedClip(NoisedClipStageConfig(net=net)).eval().requires_grad_(False)


def model(inpaint: bool = False, **parts) -> Pipeline:
    """A tiny GLIDE of 8 and 16 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        up = glide(
            16,
            8,
            inpaint,
            low_res={"round_to_8bit": True},
            sampling=Sampling(sampler="ddim", steps=2, noise_scale=0.997),
        )
        base = glide(inpaint=inpaint, sampling=FEW)
    return Pipeline(base, upsamplers=[up], name="tiny-glide", **{"tokenizer": tokenizer(), **parts})


def picture(size: int = 16) -> Image.Image:
    return to_pil(torch.rand(3, size, size, generator=seeded(0)) * 2 - 1)


def mask(size: int = 16, box: tuple[int, int, int, int] = (0, 0, 8, 16)) -> Image.Image:
    image = Image.new("L", (size, size), 0)
    image.paste(255, box)
    return image


def tiny_files(folder: Path, size: int = 97) -> Path:
    """A vocabulary of `size` tokens: some bytes, three merges, and the end of text."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + ["Ġ"]
    names = [*letters, "fi", "sh", "fish", "é"]
    names += [f"filler{i}" for i in range(size - len(names) - 1)] + ["<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    merges = "#version: 0.2\nf i\ns h\nfi sh\n"
    encoder = json.dumps({name: number for number, name in enumerate(names)})
    (folder / ENCODER).write_bytes(gzip.compress(encoder.encode()))
    (folder / VOCAB).write_bytes(gzip.compress(merges.encode()))
    return folder
