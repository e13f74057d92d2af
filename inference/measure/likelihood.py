"""Bits per dimension of held-out pictures, under a stage of a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.icons.captions import styled
from unclip.clip import Clip
from unclip.data.batches import shrink, stack
from unclip.data.reading import expand
from unclip.diffusion.denoiser import Denoise, Prediction
from unclip.diffusion.likelihood import bits_per_dim
from unclip.diffusion.noise import Noise, fold
from unclip.diffusion.schedule import step_list
from unclip.pipeline.conditions import conditions_of
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Conditions, Decoder
from unclip.stages.tokenizer import GlideTokenizer


def stage_of(pipeline: Pipeline, name: str) -> Decoder:
    """The stage "decoder" or "upsampler-256"; ``ValueError`` for one whose data are no 8-bit pictures."""
    stages = {"decoder": pipeline.decoder}
    stages |= {f"upsampler-{stage.size}": stage for stage in pipeline.upsamplers}
    if name == "prior" and pipeline.prior is not None:
        raise ValueError("the prior makes embeddings; bits per dimension are those of 8-bit pictures")
    if name not in stages:
        raise ValueError(f"{pipeline.name} has no stage '{name}'; it has: {', '.join(stages)}")
    if stages[name].autoencoder is not None:
        raise ValueError(
            f"the {name} diffuses latents, which are no 8-bit picture: it has no bits per dimension"
        )
    low_res = stages[name].config.low_res
    if low_res is not None and low_res.residual_scale is not None:
        raise ValueError(
            f"the {name} diffuses what a smaller picture lacks, which is no 8-bit picture: "
            "it has no bits per dimension"
        )
    return stages[name]


def examples(
    stage: Decoder, clip: Clip | None, samples: list[dict], size: int, tokenizer: GlideTokenizer | None = None
) -> tuple[Tensor, Conditions]:
    """Pictures [N,3,S,S], multiples of 1/127.5 in [-1,1], and what the stage is told of them.

    size: pictures are first made this high and wide, as by the recipe's ``data.size``.
    tokenizer: for a stage with a text transformer of its own.
    """
    batch = stack(samples, size)
    captions = [
        styled(s["record"]) if {"name", "style"} <= s["record"].keys() else s["caption"] for s in samples
    ]
    batch = replace(batch, pixels=batch.image.to(stage.embed_mean.device), caption=captions)
    x0 = ((shrink(batch.image, stage.size) + 1) * 127.5).round() / 127.5 - 1
    low_res = stage.config.low_res
    small = None if low_res is None else shrink(x0, low_res.size)
    return x0, conditions_of(stage, clip, batch, small, tokenizer)


def likelihood(
    stage: Decoder,
    samples: Iterable[dict],
    *,
    clip: Clip | None = None,
    tokenizer: GlideTokenizer | None = None,
    steps: int | str | None = None,
    size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> dict:
    """The bound on ``samples``, as ``read_shards`` yields them; returns a report, JSON-able.

    clip:  None for a stage that takes neither CLIP's text nor its embeddings; tokenizer: as in ``examples``.
    steps: of a respaced chain, as ``step_list`` takes them; None = every step of the process.
    size:  as for ``examples``; None = that of the first picture.

    Picture k's noise depends on (seed, k) alone. Raises ``ValueError`` if there are no pictures, or
    they do not fit the stage.
    """
    timesteps = stage.schedule.timesteps
    chain = step_list(timesteps if steps is None else steps, timesteps)
    samples, parts = iter(samples), []
    with tqdm(desc="coding", unit="step") as bar:
        while some := list(itertools.islice(samples, batch_size)):
            size = size or min(some[0]["image"].size)
            if size < stage.size:
                raise ValueError(f"pictures of {size} pixels are smaller than the stage's {stage.size}")
            done = sum(len(part["total"]) for part in parts)
            x0, conditions = examples(stage, clip, some, size, tokenizer)
            noise = Noise([fold(seed, k) for k in range(done, done + len(some))], x0.device)
            denoise = _counted(stage.denoise(conditions, stage.null(conditions), 1.0), bar)
            bits_of = bits_per_dim(denoise, stage.schedule, x0, chain, noise)
            parts.append({key: value.double().cpu() for key, value in bits_of.items()})
            bar.set_postfix(pictures=done + len(some), bits=f"{bits_of['total'].mean().item():.3f}")
    if not parts:
        raise ValueError("there are no pictures to measure the likelihood of")
    bits = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    total, n = bits["total"], len(bits["total"])
    takes = {
        "class": stage.takes_class,
        "text": stage.takes_prompt,
        "image embedding": stage.takes_image,
        "smaller picture": stage.config.low_res is not None,
    }
    return {
        "pictures": n,
        "size": stage.size,
        "given": [what for what, taken in takes.items() if taken],
        "timesteps": timesteps,
        "steps": len(chain) - 1,
        "seed": seed,
        "bits_per_dim": total.mean().item(),
        "standard_error": total.std().item() / n**0.5 if n > 1 else None,
        "prior": bits["prior"].mean().item(),
        "terms": [
            {"t": t, "s": s, "bits": term}
            for (t, s), term in zip(itertools.pairwise(chain), bits["terms"].mean(0).tolist(), strict=True)
        ],
    }


def _counted(denoise: Denoise, bar: tqdm) -> Denoise:
    """The same, with a step on the bar for every call."""

    def counted(x: Tensor, t: Tensor) -> Prediction:
        bar.update()
        return denoise(x, t)

    return counted


def shards_of(names: Sequence[str]) -> list[str]:
    """Shards, globs and folders, of which a folder means its heldout-*.tar where it has any."""
    paths = [
        (str(Path(name) / "heldout-*.tar") if any(Path(name).glob("heldout-*.tar")) else name)
        if Path(name).is_dir()
        else name
        for name in names
    ]
    return expand(paths)
