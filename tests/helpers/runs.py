"""Runs of the training loop on a network and pictures as small as they can be, and what is left of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from training.run.examples import Examples
from training.run.loop import Run
from training.run.settings import Training, make_accelerator, micro_batch
from training.streams import numbers
from unclip.checkpoint import load_checkpoint
from unclip.config import Config
from unclip.data.images import grid
from unclip.diffusion.noise import Noise
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, Process, Sampling

SETTINGS = {
    "pictures": 32,
    "batch_size": 8,
    "precision": "fp32",
    "warmup": 0,
    "log_every": 8,
    "weight_decay": 0.0,
    "trackers": [],
}


class Recipe(Config):
    """What a program would read."""

    stage: DecoderStageConfig
    train: Training
    data: dict = {}


def tiny_stage(timesteps: int = 1000, **net: object) -> Decoder:
    torch.manual_seed(0)
    net = UNetConfig(
        **{
            "image_size": 8,
            "channels": 16,
            "channel_mult": (1,),
            "num_res_blocks": 1,
            "head_channels": 8,
            "middle_attention": False,
            **net,
        }
    )
    process = Process(predicts="v", timesteps=timesteps)
    return Decoder(DecoderStageConfig(net=net, process=process, sampling=Sampling(steps=2)))


def noise(n: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


class Rows:
    """Picture number k of a run is the k-th of some pictures, over and over."""

    def __init__(self, x0: torch.Tensor, n: int, rank: int = 0, world: int = 1, draws: bool = False) -> None:
        self.x0, self.n, self.rank, self.world, self.draws = x0, n, rank, world, draws

    def rows(self, rows: list[int]) -> Examples:
        return Examples(self.x0[rows], {}, [f"picture-{row}" for row in rows])

    def batches(self, start: int) -> Iterator[Examples]:
        while True:
            mine = numbers(start, self.n, self.rank, self.world)
            yield self.rows([number % len(self.x0) for number in mine])
            start += 1

    def validation(self) -> list[Examples]:
        return [self.rows(list(range(k, min(k + 6, len(self.x0))))) for k in range(0, len(self.x0), 6)]

    def draw(self, stage: Decoder) -> Image.Image | None:
        if not self.draws:
            return None
        *_, last = stage.sample(stage.conditions(2), Noise([0, 1]))
        return grid(last.x0, columns=2)


def make_run(
    out: Path,
    x0: torch.Tensor | None = None,
    timesteps: int = 1000,
    data: dict | None = None,
    net: dict | None = None,
    draws: bool = False,
    **settings: object,
) -> Run:
    """A run of a tiny decoder of 8 pixels on ``x0``, in the folder ``out``."""
    settings = Training(**{"out": str(out), **SETTINGS, **settings})
    forget()
    accelerator = make_accelerator(settings)
    task = Rows(
        noise() if x0 is None else x0,
        micro_batch(settings, accelerator),
        accelerator.process_index,
        accelerator.num_processes,
        draws,
    )
    stage = tiny_stage(timesteps, **(net or {}))
    recipe = Recipe(stage=stage.config, train=settings, data=data or {})
    return Run(stage, task, settings, recipe, accelerator)


def fit(out: Path, *args: object, **settings: object) -> Path:
    """Train as ``make_run`` says; returns the folder of the run."""
    make_run(out, *args, **settings).train()
    return out


def broken(monkeypatch: pytest.MonkeyPatch, steps: set[int], wrong: float = math.nan) -> None:
    """In these steps (from 0) the loss of the second picture is no number."""
    real = Run._losses

    def losses(self, examples, index):
        part, loss = real(self, examples, index)
        if self.step in steps:
            spoilt = torch.where(torch.arange(len(loss)) == 1, wrong * loss, loss)
            part, loss = replace(part, terms={**part.terms, "loss": spoilt.detach()}), spoilt
        return part, loss

    monkeypatch.setattr(Run, "_losses", losses)


def of_process(rank: int = 0, world: int = 1) -> SimpleNamespace:
    """What a task asks of an accelerator, for one process of several."""
    return SimpleNamespace(
        process_index=rank,
        num_processes=world,
        device=torch.device("cpu"),
        autocast=nullcontext,
        is_main_process=rank == 0,
        main_process_first=nullcontext,
    )


def forget() -> None:
    """Accelerate keeps its state for a whole process; the next run is to be one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files(out: Path) -> list[str]:
    """The names in a folder, but for hidden ones, such as the lock of a run."""
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def saved(out: Path, name: str = "progress.pt") -> dict:
    """What a run saved last."""
    return torch.load(out / "state" / name, weights_only=True)


def raw(out: Path) -> dict[str, torch.Tensor]:
    """The weights themselves, not their average."""
    return saved(out, "pytorch_model.bin")


def equal(a: object, b: object) -> bool:
    """Whether two saved things are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same(a: Path, b: Path, kind: str = "decoder") -> bool:
    """Whether two runs have the same averaged and raw weights and optimiser, bit for bit."""
    pairs = [
        (
            load_checkpoint(out / f"{kind}.safetensors")[0],
            raw(out),
            saved(out, "optimizer.bin"),
            saved(out, "ema.bin"),
        )
        for out in (a, b)
    ]
    return all(equal(one, other) for one, other in zip(*pairs, strict=True))
