"""The one training loop: any stage, any source of data, alone or under ``accelerate launch``.

A program hands ``train`` a ``Task`` (where batches come from, what is validated and drawn) and a
``Training`` recipe. Progress is counted in pictures. The same command again continues the run: every step
is a function of the weights, the averages, the optimiser's memory and its own number, since all random
numbers are seeded by the run's seed and the picture's number (or, dropout's, the step's).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from unclip.config import Config, ConfigError
from unclip.data.images import save_png
from unclip.stages import Stage

from .changes import sealed
from .curves import Best, cut, figure_of, validate
from .examples import Task
from .folder import write_recipe
from .learner import StageLearner
from .resume import best_path, is_saved, resume, save, save_best
from .settings import Training, alone


def train(stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator) -> int:
    """Train ``stage``; returns the exit code of its program: 0 if it has seen all its pictures."""
    run = Run(stage, task, settings, recipe, accelerator)
    run.train()
    return run.code


class Run(StageLearner):
    """One run: a stage that learns its task, and what is done between its steps."""

    code = 0  # of its program, when it has ended

    def __init__(
        self, stage: Stage, task: Task, settings: Training, recipe: Config, accelerator: Accelerator
    ) -> None:
        order, listing = getattr(task, "order", {}), getattr(task, "listing", {})
        super().__init__(stage, settings, recipe, accelerator, order, sealed(listing))
        self.task = task
        self._is_owed = False  # whether a save was due while steps were left out

    def train(self) -> Path:
        """Returns the path of the averaged weights' checkpoint."""
        self._check()
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
            if 0 < self.step < self.total_steps:
                self._look_again()
            self._stop_early()
            self._steps(bar)
            self._finish()
        self.accelerator.end_training()
        return self.out / f"{self.raw.config.kind}.safetensors"

    def _check(self) -> None:
        """Find now, and not in hours, what validation and drawing would stumble over."""
        self._heldout = self.task.validation()
        self._check_validation()
        if not isinstance(self.raw, Stage):
            return
        sampling = self.raw.config.sampling
        try:
            levels = self.raw.levels(sampling)
        except ValueError as error:
            raise ConfigError(f"stage.sampling.steps: {error}") from None
        if missing := set(levels[:-1]).difference(sampling.x0_variance or levels):
            raise ConfigError(
                f"stage.sampling.x0_variance has no entry for t = {min(missing)}, a step's level"
            )

    def _check_validation(self) -> None:
        """Whether there is what the best weights are told by."""
        s = self.settings
        if s.keep == "last" and not s.patience:
            if s.keep_by is not None:
                raise ConfigError("train.keep_by is of keep: best, or of patience")
            return
        if not self._heldout:
            self.accelerator.print(
                "there is no held-out data (data.heldout), so nobody can tell which weights are best: the "
                "last ones are kept"
            )
        elif s.keep_by is not None and not self.sharded:
            timesteps = self.raw.schedule.timesteps
            means = validate(self.ema.module, self._heldout[:1], timesteps, self.accelerator)
            figure_of(list(means), s.keep_by)

    def _start(self) -> None:
        if self.accelerator.is_main_process:
            write_recipe(self.out, self.recipe)
            cut(self.guard.path, self.seen)
        self.curves.start(self.seen, self.recipe.model_dump(mode="json"))

    def _steps(self, bar: tqdm) -> None:
        batches = self.task.batches(self.step * self.settings.accumulate)
        while self.goes_on:
            self._optimise(batches)
            if self.stuck:
                break
            bar.update(self.settings.batch_size)
            if self.due(self.settings.log_every) and (values := self.means.take(self.accelerator)):
                values["learning_rate"] = self.rate(self.step)
                values |= {"skipped": self.guard.total} if self.guard.total else {}
                self.curves.record(self.seen, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}")
            if self.guard.in_a_row >= self.settings.max_skipped:
                self.guard.give_up(self.last_save)
            if self.step < self.total_steps:
                self._intervals()

    def _intervals(self) -> None:
        """A save comes before all that is looked at, and never while steps are left out."""
        self._is_owed |= self.due(self.settings.save_every)
        if self._is_owed and not self.guard.in_a_row:
            save(self)
            self._is_owed = False
        if self.due(self.settings.validate_every):
            self._attempt("validation", self._validate)
        if self.due(self.settings.sample_every):
            self._attempt("drawing", self._draw)

    def _look_again(self, last: bool = False) -> None:
        """What is due, or the last, and is not there: a kill may have come between a save and these."""
        validated, drawn = alone(
            self.accelerator, lambda: (self.curves.validated(self.seen), self._sample.is_file())
        )
        if (last or self.due(self.settings.validate_every)) and not validated:
            self._attempt("validation", self._validate)
        if (last or self.due(self.settings.sample_every)) and not drawn:
            self._attempt("drawing", self._draw)

    def _finish(self) -> None:
        """Save, unless the last steps were left out; at the end of the run all the same, since there is no
        step more that could be sound: the save before it is then ``state.old``.
        """
        is_over = self.step >= self.total_steps or self.early
        if not is_saved(self) and (is_over or not self.guard.in_a_row):
            save(self)
        self.code = self.end("pictures")
        if is_over:
            self._look_again(last=True)
            self._say_best()

    def _say_best(self) -> None:
        if self.settings.keep != "best" or (best := self._best()) is None:
            return
        ended = f"no gain in {best.since} validations, so it ends here; " if self.early else ""
        self.accelerator.print(
            f"{ended}best after {best.pictures:,} of {self.seen:,} pictures (validation/{best.figure} "
            f"{best.value:.4f}): {best_path(self.out, self.raw.config.kind)}"
        )

    def _attempt(self, what: str, look: Callable[[], None]) -> None:
        """Look at the run. An error is told, and ends nothing: what was learnt does not depend on it."""
        try:
            look()
        except Exception as error:
            if self.accelerator.is_main_process:
                tqdm.write(
                    f"{what} after {self.seen:,} pictures failed, and the run goes on without it: "
                    f"{type(error).__name__}: {error}",
                    file=sys.stderr,
                )

    def _validate(self) -> None:
        means = validate(
            self.ema.module, self._heldout, self.raw.schedule.timesteps, self.accelerator, self.sharded
        )
        if not means:
            return
        if self.settings.keep == "best":
            value = means[figure_of(list(means), self.settings.keep_by)]
            best = self._best()
            if best is None or value < best.value:
                save_best(self)  # before it is recorded: a kill in between leaves it to be done again
        self.curves.record(self.seen, {f"validation/{name}": value for name, value in means.items()})
        self._stop_early()

    def _best(self) -> Best | None:
        """The best validation so far, for all processes."""
        return alone(self.accelerator, lambda: self.curves.best(self.settings.keep_by))

    def _stop_early(self) -> None:
        """End where there was no gain for as many validations as the recipe has patience."""
        best = self._best() if self.settings.patience else None
        self.early = best is not None and best.since >= self.settings.patience

    @property
    def _sample(self) -> Path:
        return self.out / "samples" / f"{self.seen:09d}.png"

    def _draw(self) -> None:
        """A picture of samples. All processes draw it where they need each other's weights to do so."""
        try:
            if self.accelerator.is_main_process or self.sharded:
                with torch.no_grad(), self.accelerator.autocast():
                    picture = self.task.draw(self.ema.module)
                if picture is not None and self.accelerator.is_main_process:
                    save_png(picture, self._sample)
        finally:
            self.accelerator.wait_for_everyone()
