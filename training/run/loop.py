"""The one training loop: any stage, any source of data, alone or under ``accelerate launch``.

A program hands ``train`` a ``Task`` (where batches come from, what is validated and drawn) and a
``Training`` recipe. Progress is counted in pictures. The same command again continues the run: every step
is a function of the weights, the averages, the optimiser's memory and its own number, since all random
numbers are seeded by the run's seed and the picture's number (or, dropout's, the step's).
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from unclip.config import Config, to_yaml
from unclip.data.images import save_png
from unclip.files import written_aside
from unclip.stages import Stage

from .curves import cut
from .examples import Task
from .learner import StageLearner
from .resume import is_saved, resume, save
from .settings import Training
from .validation import validate


def train(stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator) -> Path:
    """Train ``stage``; returns the path of the averaged weights' checkpoint."""
    return Run(stage, task, settings, recipe, accelerator).train()


class Run(StageLearner):
    """One run: a stage that learns its task, and what is done between its steps."""

    def __init__(
        self, stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator
    ) -> None:
        super().__init__(stage, settings, recipe, accelerator, getattr(task, "order", {}))
        self.task = task

    def train(self) -> Path:
        resume(self)
        self._start()
        bar = tqdm(
            total=self.settings.pictures,
            initial=min(self.seen, self.settings.pictures),
            unit="pic",
            smoothing=0.05,
            desc=self.out.name,
            disable=not self.accelerator.is_main_process,
        )
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
            if self.due(self.settings.log_every) and (values := self.means.take(self.accelerator)):
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
        if self.due(self.settings.validate_every):
            self._validate()
        if self.due(self.settings.sample_every):
            self._draw()
        if self.due(self.settings.save_every):
            save(self)

    def _finish(self) -> None:
        if not is_saved(self):
            save(self)
        if self.step < self.total_steps:
            self.accelerator.print(f"stopped after {self.seen:,} pictures; the same command goes on")
        elif not self.curves.validated(self.seen):
            self._draw()
            self._validate()

    def _validate(self) -> None:
        means = validate(
            self.ema.module,
            self.task.validation(),
            self.raw.schedule.timesteps,
            self.accelerator,
            self.sharded,
        )
        if means:
            self.curves.record(self.seen, {f"validation/{name}": value for name, value in means.items()})

    def _draw(self) -> None:
        """A picture of samples. All processes draw it where they need each other's weights to do so."""
        if self.accelerator.is_main_process or self.sharded:
            with torch.no_grad(), self.accelerator.autocast():
                picture = self.task.draw(self.ema.module)
            if picture is not None and self.accelerator.is_main_process:
                save_png(picture, self.out / "samples" / f"{self.seen:09d}.png")
        self.accelerator.wait_for_everyone()
