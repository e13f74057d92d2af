"""One optimisation of `training.clip`: steps, curves, saves and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from unclip.config import Config, ConfigError, differences
from unclip.diffusion.noise import fold

from ..run import saves
from ..run.changes import in_words
from ..run.guard import Part
from ..run.learner import Learner
from ..run.settings import alone
from ..run.sharding import clip_gradient, load_whole_optimizer
from .batches import ClipBatch
from .recipe import Phase

Batches = Callable[[int, int], Iterator[ClipBatch]]  # (samples of a process, first number) -> batches
STATE = "phase.pt"


class Stopped(Exception):
    """The run was told to end, and is saved; holds the exit code of its program."""


class PhaseRun(Learner):
    """A phase at work: minimises `module(*batch.inputs)`, from where the last run left it.

    identity: what must not change when a run goes on; the rest of the recipe may, and it is said.
    saved: called on the main process after each save.
    """

    def __init__(
        self,
        name: str,
        phase: Phase,
        module: nn.Module,
        recipe: Config,
        identity: dict,
        accelerator: Accelerator,
        save_every: int,
        saved: Callable[[], None],
    ) -> None:
        super().__init__(Path(recipe.out) / name, phase.batch_size, phase.samples, accelerator)
        self.name, self.phase, self.module = name, phase, module
        self.facts = {
            "identity": {**identity, "batch_size": phase.batch_size},
            "recipe": recipe.model_dump(mode="json"),
        }
        self.seed, self.save_every, self.on_save = recipe.seed, save_every, saved
        if phase.batch_size % accelerator.num_processes:
            raise ConfigError(
                f"{name}.batch_size {phase.batch_size} does not divide by "
                f"{accelerator.num_processes} processes"
            )
        self.optimizer = _adam(phase, module)

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        return self.phase.rate(step) * self.phase.learning_rate

    def run(self, batches: Batches) -> None:
        """All steps that are left; raises `Stopped` when a signal ends them early."""
        accelerator = self.accelerator
        self._resume()
        if self.step >= self.total_steps:
            return
        wrapped, self.optimizer = accelerator.prepare(self.module, self.optimizer)
        wrapped.train()
        bar = tqdm(
            total=self.total_steps * self.batch_size,
            initial=self.seen,
            desc=self.name,
            unit="sample",
            unit_scale=True,
            disable=not accelerator.is_main_process,
        )
        endless = batches(self.batch_size // accelerator.num_processes, self.step)
        with self.signals, bar:
            self._steps(wrapped, endless, bar)
            if self.step >= self.total_steps or not self.guard.in_a_row:
                self._save()
        accelerator.free_memory()
        if code := self.end(f"samples of {self.name}"):
            raise Stopped(code)

    def _steps(self, wrapped: nn.Module, batches: Iterator[ClipBatch], bar: tqdm) -> None:
        is_owed = False  # whether a save was due while steps were left out
        while self.goes_on:
            loss = self._optimise(wrapped, self.fetch(batches))
            if self.stuck:
                break
            bar.update(self.batch_size)
            if (self.step - 1) % 10 == 0:
                self._record(loss, bar)
            if self.guard.in_a_row >= self.phase.max_skipped:
                self.guard.give_up(self.last_save, f"{self.name}.learning_rate")
            is_owed |= self.due(self.save_every)
            if is_owed and not self.guard.in_a_row and self.step < self.total_steps:
                self._save()
                is_owed = False

    def _optimise(self, wrapped: nn.Module, batch: ClipBatch) -> Tensor:
        """One step; returns this process's loss."""
        torch.manual_seed(fold(self.seed, self.accelerator.process_index, self.step))  # for patch dropout
        with self.accelerator.autocast():
            loss = wrapped(*batch.inputs)
        self.accelerator.backward(loss)
        part = Part(batch.keys, None, {"loss": loss.detach().float().expand(len(batch.keys))})
        self.take([part], clip_gradient(self.module.parameters(), 1.0))
        return loss.detach().float()

    def _record(self, loss: Tensor, bar: tqdm) -> None:
        """A point of the curves: the last step's loss over all processes."""
        mean = (self.accelerator.reduce(loss) / self.accelerator.num_processes).item()
        bar.set_postfix(loss=f"{mean:.3f}")
        self.accelerator.log(
            {f"{self.name}/loss": mean, f"{self.name}/rate": self.phase.rate(self.step - 1)}, step=self.seen
        )

    def _save(self) -> None:
        def write() -> None:
            state = {
                "module": self.module.state_dict(),
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
            }
            saves.write(self.out, {STATE: state}, **self.facts)
            self.on_save()

        alone(self.accelerator, write)
        self.saved = self.step

    def _resume(self) -> None:
        """Take up the newest good save of this phase, if there is one."""
        folder, complaints = saves.agreed(self.out, self.accelerator)
        for complaint in complaints:
            self.accelerator.print(f"{complaint}; going on from the save before it")
        if folder is None:
            return
        self._compare(saves.manifest(folder))
        state = saves.load(folder / STATE)
        self.module.load_state_dict(state["module"])
        load_whole_optimizer(self.optimizer, state["optimizer"])  # copied: as it is, it would stay mapped
        self.step = self.saved = state["step"]
        self.accelerator.print(f"{self.name}: going on from {self.seen:,} samples")

    def _compare(self, before: dict) -> None:
        """Refuse what cannot go on, and say what else has changed."""
        if changed := differences(before["identity"], self.facts["identity"]):
            raise ConfigError(
                f"{self.out} holds another run ({in_words(changed)}); choose another out=, or restore the "
                "recipe"
            )
        if changed := differences(before["recipe"], self.facts["recipe"]):
            self.accelerator.print(f"changed since the last run: {in_words(changed)}")


def _adam(phase: Phase, module: nn.Module) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019 (arXiv:1711.05101); gains and biases do not decay."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=phase.learning_rate,
        betas=(0.9, phase.beta2),
        eps=phase.eps,
        weight_decay=phase.weight_decay,
        fused=matrices[0].device.type in ("cpu", "cuda"),
    )
