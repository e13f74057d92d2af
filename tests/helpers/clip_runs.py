"""Runs of training.clip on the test shard, as small as they can be, and what they saved last."""

from __future__ import annotations

from pathlib import Path

from places import DATA
from runs import forget, saved

from training.clip.__main__ import main

NOISED = """{net: {embed_dim: 8, image: {width: 16, layers: 1, heads: 2}, image_size: 16, patch_size: 4,
  timesteps: 50, text: {width: 16, layers: 1, heads: 2}, vocab_size: 49408, length: 12}}"""
MODEL = """{embed_dim: 8, vision_cfg: {image_size: 16, patch_size: 4, width: 16, layers: 1, head_width: 8,
  patch_dropout: 0.25}, text_cfg: {context_length: 12, width: 16, layers: 1, heads: 2}}"""
RECIPE = f"""
data:
  shards: [{DATA}/icons-64-train-000000.tar]
  heldout: [{DATA}/icons-64-heldout-000000.tar]
  size: 16
  hold: true
images: {{samples: 64, batch_size: 8, learning_rate: 0.003, warmup: 0}}
precision: fp32
save_every: 16
"""


def train(*argv: str) -> None:
    forget()
    main([*argv])


def state(out: Path) -> dict:
    return saved(out / "images", "phase.pt")
