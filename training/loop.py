"""The one training loop: any stage, any source of data, alone or under ``accelerate launch``.

A program hands ``train`` a ``Task`` (where batches come from, what is validated and drawn) and a
``Training`` recipe. Progress is counted in pictures. The same command again continues the run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from unclip.checkpoint import written_aside
from unclip.config import Config, ConfigError, differences, to_yaml
from unclip.data.images import save_png
from unclip.diffusion.noise import fold
from unclip.diffusion.timesteps import LossSecondMoment, uniform
from unclip.ema import EMA
from unclip.stages import Conditions, Stage

from .programs import wants_bf16

Examples = tuple[Tensor, Conditions]  # what the process diffuses, and what the network is told of it


class Training(Config):
    """How a stage is trained. Counts are in pictures, over all processes."""

    out: str                                    # folder of the run
    pictures: int = Field(gt=0)                 # length of the run
    batch_size: int = Field(64, gt=0)           # pictures an optimiser step, over all processes
    accumulate: int = Field(1, gt=0)            # forward passes an optimiser step
    learning_rate: float = Field(3e-4, gt=0)    # Adam's, at its highest
    warmup: int = Field(5_000, ge=0)            # pictures of linear warm-up
    decay: Literal["cosine", "none"] = "cosine"  # to zero at the end, or not at all
    weight_decay: float = Field(0.01, ge=0)
    beta2: float = Field(0.99, gt=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)         # largest norm of the gradient
    ema_half_life: int = Field(50_000, gt=0)    # pictures
    timestep_sampler: Literal["uniform", "loss_second_moment"] = "uniform"  # which noise levels are learnt
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    compile: bool = False                       # torch.compile the network
    seed: int = 0
    log_every: int = Field(2_000, gt=0)         # pictures between points of a curve
    validate_every: int = Field(50_000, gt=0)
    sample_every: int = Field(100_000, gt=0)
    save_every: int = Field(50_000, gt=0)


class Task(Protocol):
    """What a program knows about its stage and data."""

    def batches(self, start: int) -> Iterator[Examples]:
        """This process's batches from number ``start`` on, for ever, on the stage's device."""

    def validation(self) -> list[Examples]:
        """Held-out batches, always the same; empty = no validation."""

    def draw(self, stage: Stage) -> Image.Image | None:
        """A grid of samples to look at."""


def train(stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator) -> Path:
    """Train ``stage``; returns the path of the averaged weights' checkpoint."""
    return _Run(stage, task, settings, recipe, accelerator).train()


def micro_batch(settings: Training, accelerator: Accelerator) -> int:
    """Pictures a process handles in one forward pass."""
    parts = accelerator.num_processes * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(f"batch_size {settings.batch_size} does not divide by "
                          f"{accelerator.num_processes} processes x accumulate {settings.accumulate}")
    return settings.batch_size // parts


def make_accelerator(settings: Training) -> Accelerator:
    """Device, precision, distribution and trackers, as the recipe and ``accelerate launch`` say."""
    Path(settings.out).mkdir(parents=True, exist_ok=True)  # fails now if it cannot be written
    accelerator = Accelerator(
        mixed_precision="bf16" if wants_bf16(settings.precision) else "no",
        gradient_accumulation_steps=settings.accumulate,
        log_with="tensorboard",
        project_dir=settings.out,
        step_scheduler_with_optimizer=False,
    )
    micro_batch(settings, accelerator)  # fails now if the batch cannot be shared out
    return accelerator


class _Run:
    """One run: the state that changes between steps, and the steps."""

    def __init__(self, stage: Stage, task: Task, settings: Training, recipe: Config,
                 accelerator: Accelerator) -> None:
        self.settings, self.task, self.recipe, self.accelerator = settings, task, recipe, accelerator
        self.out = Path(settings.out)
        self.raw = stage.to(accelerator.device)
        if any(p.dim() == 4 for p in stage.parameters()):
            self.raw = self.raw.to(memory_format=torch.channels_last)
        self.ema = EMA(self.raw, settings.ema_half_life)
        self.total_steps = math.ceil(settings.pictures / settings.batch_size)
        if settings.compile:
            self.raw.network.compile()
        optimizer = torch.optim.AdamW(
            self.raw.parameters(), lr=settings.learning_rate, betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay, fused=accelerator.device.type in ("cpu", "cuda"))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self.stage, self.optimizer, self.schedule = accelerator.prepare(self.raw, optimizer, schedule)
        self.importance = None
        if settings.timestep_sampler == "loss_second_moment":
            self.importance = LossSecondMoment(self.raw.schedule.timesteps)
        self.step = 0  # optimiser steps taken
        self.stopping = False
        self.recent: list[dict[str, Tensor]] = []

    @property
    def seen(self) -> int:
        """Pictures seen."""
        return self.step * self.settings.batch_size

    def _rate(self, step: int) -> float:
        """Learning rate's share of its highest: linear warm-up, then a half cosine to zero."""
        s = self.settings
        warm = min(1.0, (step + 1) * s.batch_size / max(s.warmup, 1))
        if s.decay == "none":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.total_steps, 1.0)))

    def train(self) -> Path:
        self._resume()
        self._start_tracking()
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=self.settings.pictures, initial=min(self.seen, self.settings.pictures),
                   unit="pic", smoothing=0.05, desc=self.out.name,
                   disable=not self.accelerator.is_main_process)
        batches = self.task.batches(self.step * self.settings.accumulate)
        try:
            while self.step < self.total_steps and not self._told_to_stop():
                self._optimise(batches)
                bar.update(self.settings.batch_size)
                if self._due(self.settings.log_every):
                    bar.set_postfix(loss=f"{self._log():.4f}")
                self._intervals()
            bar.close()
            self._save()
            if self.step >= self.total_steps:
                self._validate()
                self._draw()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.accelerator.end_training()
        return self.out / f"{self.raw.config.kind}.safetensors"

    def _stop(self, number: int, _: object) -> None:
        """A signal ends the run after a whole step, when its state can be saved; a second Ctrl-C at once."""
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopping = True

    def _told_to_stop(self) -> bool:
        """Whether a signal came. Processes ask each other now and then, since all must stop alike."""
        if self.accelerator.num_processes == 1:
            return self.stopping
        if self.step and not self._due(self.settings.log_every):
            return False
        told = torch.tensor(float(self.stopping), device=self.accelerator.device)
        return self.accelerator.reduce(told).item() > 0

    def _due(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` pictures."""
        return self.seen // every > (self.seen - self.settings.batch_size) // every

    def _optimise(self, batches: Iterator[Examples]) -> None:
        """One optimiser step over ``accumulate`` batches (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""
        for micro in range(self.settings.accumulate):
            x0, conditions = next(batches)
            index = self.step * self.settings.accumulate + micro
            with self.accelerator.accumulate(self.stage):
                terms = self._losses(x0, conditions, index)
                self.accelerator.backward(terms["loss"].mean())
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.stage.parameters(), self.settings.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        self.ema.update(self.raw, self.settings.batch_size, self.seen)

    def _losses(self, x0: Tensor, conditions: Conditions, index: int) -> dict[str, Tensor]:
        """Loss terms of one batch, the loss ready to be averaged; its t, noise and drops depend on
        (seed, rank, index) alone, and t also on what importance sampling has seen.
        """
        rank, device = self.accelerator.process_index, x0.device
        generator = torch.Generator(device).manual_seed(fold(self.settings.seed, rank, index))
        if self.importance is None:
            t = uniform(len(x0), self.raw.schedule.timesteps, generator).to(device)
        else:
            t = self.importance.draw(len(x0), generator)
        noise = torch.randn(x0.shape, device=device, generator=generator)
        terms = self.stage(x0, t, noise, self.raw.drop(conditions, generator))
        self._remember(terms, t)
        return terms if self.importance is None else self._weighted(terms, t)

    def _weighted(self, terms: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """The loss with its weights; the sampler learns what it was, from every process in one order."""
        loss = terms["loss"]
        weights = self.importance.weights(t).to(loss)
        self.importance.update(*self.accelerator.gather((t, loss.detach())))
        return {**terms, "loss": weights * loss}

    def _remember(self, terms: dict[str, Tensor], t: Tensor) -> None:
        """Keep the means for the curves, all unweighted."""
        self.recent.append(self._means({name: value.detach() for name, value in terms.items()}, t))

    def _means(self, terms: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """The mean of every term, over all t and by quartile of t."""
        means = {name: value.mean() for name, value in terms.items()}
        quartile = (t - 1) * 4 // self.raw.schedule.timesteps
        for q in quartile.unique().tolist():
            means |= {f"{name}/quartile{q}": value[quartile == q].mean() for name, value in terms.items()}
        return means

    def _log(self) -> float:
        """Write the means since the last point; returns the loss."""
        names = {name for means in self.recent for name in means}
        values = {name: torch.stack([m[name] for m in self.recent if name in m]).mean().item()
                  for name in sorted(names)}
        self.recent.clear()
        values["learning_rate"] = self.schedule.get_last_lr()[0]
        self._record(values)
        return values["loss"]

    def _record(self, values: dict[str, float]) -> None:
        """TensorBoard, and a line of JSON that any program can read."""
        self.accelerator.log(values, step=self.seen)
        if self.accelerator.is_main_process:
            with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"pictures": self.seen, **values}) + "\n")

    def _intervals(self) -> None:
        last = self.step >= self.total_steps
        if self._due(self.settings.save_every) and not last:
            self._save()
        if self._due(self.settings.validate_every) and not last:
            self._validate()
        if self._due(self.settings.sample_every) and not last:
            self._draw()

    @torch.no_grad()
    def _validate(self) -> None:
        """Loss terms of the averaged weights on held-out data, at fixed t and noise."""
        if not self.accelerator.is_main_process:
            return
        parts, levels = [], []
        for number, (x0, conditions) in enumerate(self.task.validation()):
            generator = torch.Generator(x0.device).manual_seed(fold(1, number))
            count = torch.arange(len(x0), device=x0.device)
            t = 1 + (count * self.raw.schedule.timesteps) // len(x0)  # every level alike
            noise = torch.randn(x0.shape, device=x0.device, generator=generator)
            with self.accelerator.autocast():
                parts.append(self.ema.module(x0, t, noise, conditions))
            levels.append(t)
        if parts:
            terms = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "loss"}
            means = self._means({name: term.float() for name, term in terms.items()}, torch.cat(levels))
            self._record({f"validation/{name}": value.item() for name, value in means.items()})

    def _draw(self) -> None:
        if self.accelerator.is_main_process:
            with self.accelerator.autocast():
                picture = self.task.draw(self.ema.module)
            if picture is not None:
                save_png(picture, self.out / "samples" / f"{self.seen:09d}.png")

    def _start_tracking(self) -> None:
        if self.accelerator.is_main_process:
            with written_aside(self.out / "recipe.yaml") as aside:
                aside.write_text(to_yaml(self.recipe), encoding="utf-8")
        self.accelerator.init_trackers("curves")

    def _save(self) -> None:
        """Averaged weights for use, and the training state for going on; each all or nothing."""
        self.accelerator.wait_for_everyone()
        aside, state = self.out / "state.new", self.out / "state"
        # Not as safetensors, which would leave out the empty statistics of a stage without embeddings.
        self.accelerator.save_state(str(aside), safe_serialization=False)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.accelerator.is_main_process:
            self.ema.module.save(self.out / f"{self.raw.config.kind}.safetensors",
                                 pictures_seen=self.seen)
            torch.save({"step": self.step, "batch_size": self.settings.batch_size,
                        "stage": self._identity(),
                        "ema": self.ema.module.state_dict(),
                        "importance": self.importance and self.importance.state_dict()},
                       aside / "progress.pt")
            old = self.out / "state.old"
            shutil.rmtree(old, ignore_errors=True)
            if state.exists():
                os.replace(state, old)
            os.replace(aside, state)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _identity(self) -> dict:
        """What must not change when a run goes on: the stage, but for how it is sampled."""
        return self.raw.config.model_dump(mode="json", exclude={"sampling"})

    def _reread(self, identity: dict) -> dict:
        """What an earlier version saved of its stage, with the defaults of fields that came later."""
        try:
            config = type(self.raw.config).model_validate(identity)
        except ValueError:
            return identity  # of another kind of stage, or of none that is valid now
        return config.model_dump(mode="json", exclude={"sampling"})

    def _resume(self) -> None:
        """Go on from the last save, if there is one and it is of this stage."""
        found = [p for p in (self.out / "state", self.out / "state.old") if (p / "progress.pt").is_file()]
        if not found:
            return
        progress = torch.load(found[0] / "progress.pt", map_location="cpu", weights_only=True)
        before = self._reread(progress["stage"])
        if before != self._identity():
            changed = differences(before, self._identity())
            raise ConfigError(f"{self.out} holds a run of another stage ({changed}); "
                              "choose another out=, or restore the recipe")
        batch_size = progress.get("batch_size", self.settings.batch_size)
        if batch_size != self.settings.batch_size:
            raise ConfigError(f"{self.out} was begun with batch_size {batch_size}; go on with that, "
                              "or choose another out=")
        self.accelerator.load_state(str(found[0]))
        self.ema.module.load_state_dict(progress["ema"])
        if self.importance is not None and progress.get("importance"):
            self.importance.load_state_dict(progress["importance"])
        self.step = progress["step"]
        self.accelerator.print(f"going on from {self.seen:,} pictures in {self.out}")
