"""Recipes and tasks that learn from embedded shards."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import WIDTH

from training import prior
from training.run.settings import make_accelerator
from training.tasks import pictures, prior_rows
from unclip.clip import Clip, load_clip
from unclip.config import load_config
from unclip.stages import Decoder, Prior

PRIOR = {
    "net": {"embed_dim": WIDTH, "text_dim": WIDTH, "text_length": 16, "width": 16, "layers": 1, "heads": 2},
    "sampling": {"steps": 2},
}


DECODER = {
    "net": {
        "image_size": 16,
        "channels": 16,
        "channel_mult": [1],
        "num_res_blocks": 1,
        "head_channels": 8,
        "middle_attention": False,
        "image_embed_dim": WIDTH,
        "text_dim": WIDTH,
        "context_channels": 8,
        "attention_resolutions": [16],
    },
    "process": {"predicts": "v"},
    "sampling": {"steps": 2},
}


CAPTIONS = ["a cat", "a dog that runs", ""]


def clip_of(clips: Path) -> Clip:
    return load_clip(clips / "one" / "clip")


def recipe(kind: str, embedded: Path, out: Path, **more: object) -> Path:
    data = {
        "shards": [str(embedded / "train-*.tar")],
        "heldout": [str(embedded / "heldout-*.tar")],
        "size": 16,
        "embeddings": str(embedded / "embeddings"),
        **more.pop("data", {}),
    }
    train = {"out": str(out), "pictures": 8, "batch_size": 4, "precision": "fp32", "warmup": 0}
    path = out.with_suffix(".yaml")
    stage = PRIOR if kind == "prior" else DECODER
    path.write_text(json.dumps({"data": data, "stage": stage, "train": train, **more}))
    return path


def task_of(kind: str, path: Path):
    program = prior if kind == "prior" else pictures
    config = config_of(kind, path)
    stage = Prior(config.stage) if kind == "prior" else Decoder(config.stage)
    task = prior_rows.RowsTask if kind == "prior" else program.PictureTask
    return task(config, stage, make_accelerator(config.train))


def config_of(kind: str, path: Path):
    return load_config(prior.PriorRecipe if kind == "prior" else pictures.PictureRecipe, path)
