"""One optimisation of `training.clip`: steps, curves, saves and how it goes on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import Field
from torch import nn
from tqdm import tqdm

from training import state
from training.changes import told
from training.clip_batches import ClipBatch
from training.guard import NotFinite
from training.sharding import load_whole_optimizer
from training.signals import Signals
from unclip.config import Config, ConfigError, differences
from unclip.diffusion.noise import fold

Batches = Callable[[int, int], Iterator[ClipBatch]]  # (samples of a process, first number) -> batches
STATE = "phase.pt"


class Phase(Config):
    """One optimisation: AdamW, linear warm-up, half a cosine to zero. Counts are in samples."""

    samples: int = Field(gt=0)
    batch_size: int = Field(256, gt=0)          # of a step, over all processes
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(10_000, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    max_skipped: int = Field(10, gt=0)          # steps in a row with a loss that is no number, then it stops

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def rate(self, step: int) -> float:
        """The learning rate's share of its highest."""
        warm = min(1, (step + 1) * self.batch_size / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Stopped(Exception):
    """The run was told to end, and is saved."""


class PhaseRun:
    """A phase at work: minimises `module(*batch.inputs)`, from where the last run left it.

    identity: what must not change when a run goes on; the rest of the recipe may, and it is said.
    saved: called on the main process after each save.
    """

    def __init__(self, name: str, phase: Phase, module: nn.Module, recipe: Config, identity: dict,
                 accelerator: Accelerator, save_every: int, saved: Callable[[], None]) -> None:
        self.name, self.phase, self.module, self.accelerator = name, phase, module, accelerator
        self.facts = {"identity": {**identity, "batch_size": phase.batch_size},
                      "recipe": recipe.model_dump(mode="json")}
        self.folder, self.seed = Path(recipe.out) / name, recipe.seed
        self.save_every, self.saved = save_every, saved
        if phase.batch_size % accelerator.num_processes:
            raise ConfigError(f"{name}.batch_size {phase.batch_size} does not divide by "
                              f"{accelerator.num_processes} processes")
        self.optimizer = _adam(phase, module)
        self.step, self.skipped, self.told = 0, 0, False

    def run(self, batches: Batches) -> None:
        """All steps that are left; raises `Stopped` when a signal ends them early."""
        phase, accelerator = self.phase, self.accelerator
        self._resume()
        if self.step >= phase.steps:
            return
        wrapped, optimizer = accelerator.prepare(self.module, self.optimizer)
        wrapped.train()
        bar = tqdm(total=phase.steps * phase.batch_size, initial=self.step * phase.batch_size, desc=self.name,
                   unit="sample", unit_scale=True, disable=not accelerator.is_main_process)
        endless = batches(phase.batch_size // accelerator.num_processes, self.step)
        with Signals() as signals, bar:
            while self.step < phase.steps and not self.told:
                loss = self._optimise(wrapped, optimizer, next(endless), signals)
                bar.update(phase.batch_size)
                if (self.step - 1) % 10 == 0:
                    bar.set_postfix(loss=f"{loss:.3f}")
                    rate = phase.rate(self.step - 1)
                    accelerator.log({f"{self.name}/loss": loss, f"{self.name}/rate": rate},
                                    step=self.step * phase.batch_size)
                if self._due() and self.step < phase.steps:
                    self._save()
                if self.skipped >= phase.max_skipped:
                    self._give_up()
            self._save()
        accelerator.free_memory()
        if self.step < phase.steps:
            raise Stopped(f"stopped after {self.step * phase.batch_size:,} samples of {self.name}; the same "
                          "command goes on")

    def _optimise(self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, batch: ClipBatch,
                  signals: Signals) -> float:
        """One step; returns the loss over all processes. One that is not finite changes nothing."""
        accelerator = self.accelerator
        torch.manual_seed(fold(self.seed, accelerator.process_index, self.step))  # for patch dropout
        with accelerator.autocast():
            loss = wrapped(*batch.inputs)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
        flags = torch.stack([loss.detach().float(), torch.tensor(float(signals.came), device=loss.device)])
        mean, stop = (accelerator.reduce(flags) / accelerator.num_processes).tolist()
        self.told = stop > 0
        if math.isfinite(mean) and math.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = self.phase.rate(self.step) * self.phase.learning_rate
            optimizer.step()
            self.skipped = 0
        else:
            self.skipped += 1
            tqdm.write(f"{self.name}: step {self.step + 1} is left out: its loss is {mean}, the norm of its "
                       f"gradient {float(norm)}; samples {', '.join(batch.keys)}", file=sys.stderr)
        self.step += 1
        optimizer.zero_grad()
        return mean

    def _give_up(self) -> None:
        self._save()
        raise NotFinite(f"stopped: the loss was not finite in {self.skipped} steps in a row. {self.folder} "
                        f"has the weights of the last sound step. A lower {self.name}.learning_rate, or "
                        "precision=fp32, may help")

    def _due(self) -> bool:
        """Whether the last step crossed a multiple of `save_every` samples."""
        size = self.phase.batch_size
        return self.step * size // self.save_every > (self.step - 1) * size // self.save_every

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state.write(self.folder, {STATE: {"module": self.module.state_dict(), "step": self.step,
                                              "optimizer": self.optimizer.state_dict()}}, **self.facts)
            self.saved()
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Take up the newest good save of this phase, if there is one."""
        found = [None, []]
        if self.accelerator.is_main_process:
            found = [*state.newest(self.folder)]
        folder, complaints = broadcast_object_list(found)
        for complaint in complaints:
            self.accelerator.print(f"{complaint}; going on from the save before it")
        if folder is None:
            return
        self._compare(json.loads((folder / state.MANIFEST).read_text(encoding="utf-8")))
        kept = state.load(folder / STATE)
        self.module.load_state_dict(kept["module"])
        load_whole_optimizer(self.optimizer, kept["optimizer"])  # copied: as it is, it would stay mapped
        self.step = kept["step"]
        self.accelerator.print(f"{self.name}: going on from {self.step * self.phase.batch_size:,} samples")

    def _compare(self, before: dict) -> None:
        """Refuse what cannot go on, and say what else has changed."""
        if changed := differences(before["identity"], self.facts["identity"]):
            raise ConfigError(f"{self.folder} holds another run ({told(changed)}); choose another out=, or "
                              "restore the recipe")
        if changed := differences(before["recipe"], self.facts["recipe"]):
            self.accelerator.print(f"changed since the last run: {told(changed)}")


def _adam(phase: Phase, module: nn.Module) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019 (arXiv:1711.05101); gains and biases do not decay."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, phase.beta2), eps=phase.eps,
                             weight_decay=phase.weight_decay,
                             fused=matrices[0].device.type in ("cpu", "cuda"))
