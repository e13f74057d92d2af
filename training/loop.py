"""The one training loop: any stage, any source of data, alone or under ``accelerate launch``.

A program hands ``train`` a ``Task`` (where batches come from, what is validated and drawn) and a
``Training`` recipe. Progress is counted in pictures. The same command again continues the run: every step
is a function of the weights, the averages, the optimiser's memory and its own number, since all random
numbers are seeded by the run's seed and the picture's number (or, dropout's, the step's).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unclip.checkpoint import written_aside
from unclip.config import Config, to_yaml
from unclip.data.images import save_png
from unclip.diffusion.noise import fold
from unclip.diffusion.timesteps import LossSecondMoment, uniform
from unclip.ema import EMA
from unclip.nets.blocks import Unit
from unclip.stages import Conditions, Stage

from .curves import Curves, Means, cut
from .guard import Guard, Part
from .resume import is_saved, resume, save
from .settings import Training, make_accelerator, micro_batch
from .sharding import clip, shard
from .signals import Signals
from .streams import Purpose, numbers, streams
from .validation import validate

__all__ = ["Examples", "Run", "Task", "Training", "make_accelerator", "micro_batch", "train"]


@dataclass(frozen=True)
class Examples:
    """A batch: what the process diffuses [N, ...], what the network is told of it, and the samples' keys."""

    x0: Tensor
    conditions: Conditions
    keys: list[str]

    def __len__(self) -> int:
        return len(self.x0)


class Task(Protocol):
    """What a program knows about its stage and data.

    ``order`` (a dict; may be left out) says what the order of its batches depends on besides the recipe.
    """

    def batches(self, start: int) -> Iterator[Examples]:
        """This process's batches from number ``start`` on, for ever, on the stage's device."""

    def validation(self) -> list[Examples]:
        """Held-out batches, always the same; empty = no validation."""

    def draw(self, stage: Stage) -> Image.Image | None:
        """A grid of samples to look at."""


def train(stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator) -> Path:
    """Train ``stage``; returns the path of the averaged weights' checkpoint."""
    return Run(stage, task, settings, recipe, accelerator).train()


class Run:
    """One run: the state that changes between steps, and the steps."""

    def __init__(self, stage: Stage, task: Task, settings: Training, recipe: Config,
                 accelerator: Accelerator) -> None:
        self.settings, self.task, self.recipe, self.accelerator = settings, task, recipe, accelerator
        self.out = Path(settings.out)
        self.total_steps = math.ceil(settings.pictures / settings.batch_size)
        self._prepare(stage.to(accelerator.device))
        self.weights = list(self.raw.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2),
            eps=settings.eps, weight_decay=settings.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"))
        self.importance = None
        if settings.timestep_sampler == "loss_second_moment":
            self.importance = LossSecondMoment(self.raw.schedule.timesteps)
        self.means = Means(self.raw.schedule.timesteps)
        self.curves = Curves(self.out, accelerator)
        self.guard = Guard(self.out, accelerator)
        self.step = 0  # optimiser steps taken, or left out
        self.saved = -1  # ... when it was last saved
        self.signals = Signals()
        self.told = False  # whether a signal came to any process

    def _prepare(self, stage: Stage) -> None:
        """The stage as it is (``raw``), its average, and the stage as processes share it (``stage``)."""
        accelerator, sharded = self.accelerator, getattr(self.accelerator, "shards", False)
        if not sharded and any(p.dim() == 4 for p in stage.parameters()):
            stage = stage.to(memory_format=torch.channels_last)
        self.raw, self.sharded = stage, sharded
        self.ema = EMA(stage, self.settings.ema_half_life)
        for module in stage.modules():
            if isinstance(module, Unit):
                module.checkpointing = self.settings.checkpointing
        if sharded:
            for module in (stage, self.ema.module):
                shard(module, accelerator.device, accelerator.mixed_precision == "bf16")
        if self.settings.compile:
            stage.network.compile()
        # Of two networks (`last_network`) a step may leave one out.
        unused = getattr(stage.config, "last_network", False)
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        self.stage = stage if sharded else accelerator.prepare(stage)

    @property
    def seen(self) -> int:
        """Pictures seen."""
        return self.step * self.settings.batch_size

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a half cosine to zero."""
        s = self.settings
        warm = s.learning_rate * min(1.0, (step + 1) * s.batch_size / max(s.warmup, 1))
        if s.decay == "none":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.total_steps, 1.0)))

    def train(self) -> Path:
        resume(self)
        self._start()
        bar = tqdm(total=self.settings.pictures, initial=min(self.seen, self.settings.pictures),
                   unit="pic", smoothing=0.05, desc=self.out.name,
                   disable=not self.accelerator.is_main_process)
        with self.signals, bar:
            self._steps(bar)
            self._finish()
        self.accelerator.end_training()
        return self.out / f"{self.raw.config.kind}.safetensors"

    def _start(self) -> None:
        if self.accelerator.is_main_process:
            with written_aside(self.out / "recipe.yaml") as aside:
                aside.write_text(to_yaml(self.recipe), encoding="utf-8")
            cut(self.guard.path, self.seen)
        self.curves.start(self.seen, self.recipe.model_dump(mode="json"))

    def _steps(self, bar: tqdm) -> None:
        batches = self.task.batches(self.step * self.settings.accumulate)
        while self.step < self.total_steps and not self.told:
            self._optimise(batches)
            bar.update(self.settings.batch_size)
            if self._due(self.settings.log_every) and (values := self.means.take(self.accelerator)):
                values["learning_rate"] = self.rate(self.step)
                values |= {"skipped": self.guard.total} if self.guard.total else {}
                self.curves.record(self.seen, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
            if self.step < self.total_steps:
                self._intervals()
            if self.guard.in_a_row >= self.settings.max_skipped:
                save(self)
                self.guard.give_up()

    def _intervals(self) -> None:
        """What is looked at now and then; the save comes last, so that it knows of all points before it."""
        if self._due(self.settings.validate_every):
            self._validate()
        if self._due(self.settings.sample_every):
            self._draw()
        if self._due(self.settings.save_every):
            save(self)

    def _finish(self) -> None:
        if not is_saved(self):
            save(self)
        if self.step < self.total_steps:
            self.accelerator.print(f"stopped after {self.seen:,} pictures; the same command goes on")
        elif not self.curves.validated(self.seen):
            self._draw()
            self._validate()

    def _due(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` pictures."""
        return self.seen // every > (self.seen - self.settings.batch_size) // every

    def _optimise(self, batches: Iterator[Examples]) -> None:
        """One optimiser step over ``accumulate`` batches (Kingma & Ba 2015; Loshchilov & Hutter 2019).

        A step whose loss or gradient is not finite anywhere is left out everywhere.
        """
        accumulate, parts = self.settings.accumulate, []
        for micro in range(accumulate):
            examples = next(batches)
            with self._shared(last=micro == accumulate - 1):
                part, loss = self._losses(examples, self.step * accumulate + micro)
                self.accelerator.backward(loss.mean() / accumulate)
            parts.append(part)
        norm = clip(self.weights, self.settings.clip_norm)
        self.step += 1
        if self._agreed(self.guard.sound(parts, norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step - 1)
            self.optimizer.step()
            self.ema.update(self.raw, self.settings.batch_size, self.seen)
            for part in parts:
                self.means.add(part.terms, part.t)
            self.guard.in_a_row = 0
        else:
            self.guard.skipped(self.seen, parts, norm)
        self.optimizer.zero_grad()

    def _shared(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the processes after the last part of a step."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.stage)

    def _agreed(self, sound: bool) -> bool:
        """Whether the step is sound in all processes; they also hear whether any was told to stop."""
        flags = torch.tensor([not sound, self.signals.came], dtype=torch.float32,
                             device=self.accelerator.device)
        bad, told = self.accelerator.reduce(flags).tolist()
        self.told = told > 0
        return not bad

    def _losses(self, examples: Examples, index: int) -> tuple[Part, Tensor]:
        """Loss terms of batch number ``index``, and the loss [N] to be averaged.

        A picture's t, noise and drops depend on the seed and its number alone, and its t also on what
        importance sampling has seen. Dropout depends on (seed, rank, index).
        """
        rank, world, seed = (self.accelerator.process_index, self.accelerator.num_processes,
                             self.settings.seed)
        x0, n = examples.x0, len(examples)
        source = streams(seed, Purpose.LOSS, numbers(index, n, rank, world), x0.device)
        if self.importance is None:
            t = uniform(n, self.raw.schedule.timesteps, source)
        else:
            t = self.importance.draw(n, source)
        noise = source(x0.shape[1:])
        conditions = self.raw.drop(examples.conditions, source)
        torch.manual_seed(fold(seed, rank, index))
        with self.accelerator.autocast():
            terms = self.stage(x0, t, noise, conditions)
        terms = {name: term.float() for name, term in terms.items()}
        part = Part(examples.keys, t, {name: term.detach() for name, term in terms.items()})
        return part, terms["loss"] if self.importance is None else self._weighted(terms["loss"], t)

    def _weighted(self, loss: Tensor, t: Tensor) -> Tensor:
        """The loss with its weights; the sampler learns what it was, from all processes in the pictures'
        order, as far as it is finite.
        """
        weights, world = self.importance.weights(t).to(loss), self.accelerator.num_processes
        t, seen = (self.accelerator.gather(x.detach()).view(world, -1).T.flatten() for x in (t, loss))
        finite = seen.isfinite()
        self.importance.update(t[finite], seen[finite])
        return weights * loss

    def _validate(self) -> None:
        if means := validate(self):
            self.curves.record(self.seen, {f"validation/{name}": value for name, value in means.items()})

    def _draw(self) -> None:
        """A picture of samples. All processes draw it where they need each other's weights to do so."""
        if self.accelerator.is_main_process or self.sharded:
            with torch.no_grad(), self.accelerator.autocast():
                picture = self.task.draw(self.ema.module)
            if picture is not None and self.accelerator.is_main_process:
                save_png(picture, self.out / "samples" / f"{self.seen:09d}.png")
        self.accelerator.wait_for_everyone()
