"""The recipes of tiny runs, one of each training program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from places import DATA
from tiny_models import WIDTH

from training import decoder, prior, upsampler

PICTURES = {
    "shards": [f"{DATA}/icons-64-train-*.tar"],
    "size": 16,
    "heldout": [f"{DATA}/icons-64-heldout-*.tar"],
}


NET = {
    "image_size": 16,
    "channels": 16,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "head_channels": 8,
    "dropout": 0.1,
    "middle_attention": False,
}


TEXT = {"text_dim": WIDTH, "context_channels": 8, "attention_resolutions": [16]}


LEARNED = {"predicts": "eps", "variance": "learned", "loss": "hybrid"}


STAGES = {
    "ddpm": {"net": {**NET, "out_channels": 6}, "process": LEARNED, "sampling": {"steps": 2}},
    "glide": {"net": {**NET, **TEXT}, "process": {"predicts": "v"}, "sampling": {"steps": 2}},
    "decoder": {"net": {**NET, **TEXT, "image_embed_dim": WIDTH, "out_channels": 6}, "process": LEARNED,
                "sampling": {"steps": 2, "guidance_scale": 2.0}, "embed_noise": 0.1},
    "upsampler": {"net": {**NET, "in_channels": 6, "pixel_unshuffle": 2}, "process": {"predicts": "v"},
                  "sampling": {"steps": 2}, "low_res": {"size": 8, "noise": 0.1, "residual_scale": 0.3}},
    "prior": {"net": {"embed_dim": WIDTH, "text_dim": WIDTH, "text_length": 16, "width": 16, "layers": 1,
                      "heads": 2, "dropout": 0.1}, "sampling": {"steps": 2}},
    "prior-ar": {"kind": "prior-ar", "net": {
        "embed_dim": WIDTH, "text_dim": WIDTH, "text_length": 16, "width": 16, "layers": 1, "heads": 2,
        "dropout": 0.1, "components": 4, "buckets": 16, "similarities": 4}},
}  # fmt: skip


PRIORS = ("prior", "prior-ar")
MAIN = {
    **dict.fromkeys(STAGES, decoder.main),
    "upsampler": upsampler.main,
    **dict.fromkeys(PRIORS, prior.main),
}


def kind_of(name: str) -> str:
    """What the checkpoint of a run holds."""
    return name if name in PRIORS else "decoder"


def term_of(name: str) -> str:
    """What its losses have by name, held-out ones too."""
    return "cross_entropy" if name == "prior-ar" else "mse"


def writer(folder: Path, model: Path) -> Callable[..., Path]:
    """What writes the recipe of a tiny run into a folder: 32 pictures, 8 a step, with the CLIP of a model."""

    def write(name: str, out: str = "run", **settings: object) -> Path:
        settings = {
            "out": str(folder / out),
            "pictures": 32,
            "batch_size": 8,
            "precision": "fp32",
            "log_every": 8,
            "warmup": 0,
            **settings,
        }
        recipe = {
            "stage": STAGES[name],
            "train": settings,
            "data": {**PICTURES, "kind": "shards" if name in ("ddpm", "glide") else "icons"},
        }
        if name in ("glide", "decoder", *PRIORS):
            recipe["clip"] = str(model / "clip")
        if name in PRIORS:
            recipe["embeddings"] = 64
        if name == "upsampler":
            recipe["data"]["crop"] = 8
        path = folder / f"{out}.yaml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        return path

    return write
