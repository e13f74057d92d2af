"""Priors of one CLIP beside each other: how near to the pictures' own embeddings theirs are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.icons.captions import styled
from unclip.data.batches import stack
from unclip.data.reading import read_shards
from unclip.models import load
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import load_prior

from .likelihood import shards_of


def scores(drawn: Tensor, true: Tensor, margin: float = 1e-6) -> tuple[float, float]:
    """The mean cosine of embeddings [N,D] to the true ones, and how often theirs is the nearest of all.

    Pictures that are the same count as one: what is as near as the true one, by a millionth, is it.
    """
    likeness = F.normalize(drawn, dim=-1) @ F.normalize(true, dim=-1).T  # [N, N]
    own = likeness.diagonal()
    return own.mean().item(), (own >= likeness.amax(1) - margin).float().mean().item()


def compare(
    model: str, shards: str, priors: Sequence[str | Path], limit: int = 256, seed: int = 0, timed: int = 16
) -> str:
    """A Markdown table of a model's own prior and of others, each as its checkpoint samples by default.

    priors: checkpoints, or folders with one. Of ``limit`` held-out pictures with their captions (of icons:
    "a tropical fish, flat style"): the mean cosine, R@1 among them, and seconds a prompt, of ``timed``
    prompts that are embedded one by one, text encoding included.
    """
    pipeline = load(model, "cpu")
    samples = list(islice(read_shards(shards_of([shards]), shuffle=10_000, seed=seed), limit))
    captions = [
        styled(s["record"]) if {"name", "style"} <= s["record"].keys() else s["caption"] for s in samples
    ]
    with torch.no_grad():
        true = pipeline.clip.encode_image(stack(samples, min(samples[0]["image"].size)).image).float()
    lines = ["| prior | cosine | R@1 | seconds a prompt |", "|---|--:|--:|--:|"]
    for name, prior in [(f"{model}'s own", pipeline.prior), *((str(path), _prior(path)) for path in priors)]:
        whole = Pipeline(pipeline.decoder, prior, [], pipeline.clip, model)
        cosine, first = scores(whole.embed_prompt(captions, seed=seed), true)
        start = time.perf_counter()
        for caption in captions[:timed]:
            whole.embed_prompt(caption, seed=seed)
        seconds = (time.perf_counter() - start) / timed
        lines.append(f"| {name}, {prior.config.kind} | {cosine:.3f} | {first:.1%} | {seconds:.3f} |")
    return "\n".join([*lines, "", f"{len(samples)} held-out pictures, seed {seed}."])


def _prior(path: str | Path):
    """From a checkpoint, or the folder of its run."""
    path = Path(path)
    return load_prior(next(path.glob("prior*.safetensors")) if path.is_dir() else path)
