"""The one training step: counted, at a rate that follows its number, and left out where it is not sound."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from unclip.config import Config
from unclip.diffusion.noise import fold
from unclip.diffusion.timesteps import LossSecondMoment, uniform
from unclip.nets.blocks import Unit
from unclip.stages import Stage

from ..programs import INTERRUPTED, STOPPED
from ..streams import Purpose, numbers, streams
from . import saves
from .curves import Curves, Means
from .ema import EMA
from .examples import Examples
from .guard import Guard, Part, Signals
from .settings import Training
from .sharding import clip_gradient, shard

B = TypeVar("B")


class NoData(ValueError):
    """There is no next batch, for a reason that is no mistake of the recipe's."""


class Learner(ABC):
    """Weights under an optimiser. A run adds where losses come from, what is averaged, and when it is saved.

    batch_size: samples a step, over all processes; steps are counted in these.
    total:      samples of the whole run.
    """

    optimizer: torch.optim.Optimizer  # of the run, which knows what decays

    def __init__(self, out: Path, batch_size: int, total: int, accelerator: Accelerator) -> None:
        self.out, self.batch_size, self.accelerator = out, batch_size, accelerator
        self.total_steps = -(-total // batch_size)
        self.guard = Guard(out, accelerator)
        self.signals = Signals()
        self.step = 0  # optimiser steps taken, or left out
        self.saved = -1  # ... when it was last saved
        self.ending = self.interrupted = False  # whether a signal came to any process, and that it was Ctrl-C
        self.early = False  # whether it ends here, since validation has no gain any more
        self.stuck = False  # whether any process has no next batch
        self._batch: object = None  # the last one here
        self._lost: Exception | None = None  # why there is no next one here

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""

    @property
    def seen(self) -> int:
        """Samples seen."""
        return self.step * self.batch_size

    def due(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` samples."""
        return self.seen // every > (self.seen - self.batch_size) // every

    def fetch(self, batches: Iterator[B]) -> B:
        """The next batch. If it does not come the last one stands in, so that no other process waits for this
        one in vain; ``take`` then leaves the run as it was before the step, for ``end`` to tell.
        """
        try:
            if self._lost is None:
                self._batch = next(batches)
        except Exception as error:
            if self._batch is None:
                raise
            self._lost = error
        return self._batch

    @property
    def goes_on(self) -> bool:
        """Whether there is another step to take. A run that is told to end takes a few more where the last
        one was not sound, since it cannot be saved before one is.
        """
        return (
            self.step < self.total_steps
            and not self.stuck
            and not self.early
            and (not self.ending or self.guard.in_a_row > 0)
        )

    @property
    def last_save(self) -> str:
        """Where a run goes on that is not saved now, in words."""
        if self.saved < 0:
            return "its beginning, since there is no save"
        return f"{self.out / saves.LAST}, saved after {self.saved * self.batch_size:,} samples"

    def end(self, unit: str) -> int:
        """The exit code of a run whose steps are over: 0 if it has taken all; else it says where it goes on.

        unit: what is counted, such as "pictures". Raises what kept the next batch from coming.
        """
        if self.step >= self.total_steps or self.early:
            return 0
        rest = "" if self.saved == self.step else f" from {self.last_save}"
        self.accelerator.print(f"stopped after {self.seen:,} {unit}; the same command goes on{rest}")
        if isinstance(self._lost, ValueError | OSError) and not isinstance(self._lost, ConnectionError):
            raise self._lost
        if self._lost is not None:
            raise NoData(
                f"the next samples did not come: {self._lost}; a process that reads them may have died, of "
                "too little memory, say"
            )
        if self.stuck:
            raise NoData("the next samples did not come to another process, which says why")
        return INTERRUPTED if self.interrupted else STOPPED

    def take(self, parts: list[Part], norm: Tensor) -> bool:
        """Take the step whose gradient is there, unless a loss or its norm is not finite anywhere; then it is
        left out everywhere. Returns whether it was taken. Where any process has no batch it does not count.
        """
        sound = self._agreed(self.guard.sound(parts, norm))
        if self.stuck:
            self.optimizer.zero_grad()
            return False
        self.step += 1
        if sound:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step - 1)
            self.optimizer.step()
            self.guard.in_a_row = 0
        else:
            self.guard.skipped(self.seen, parts, norm)
        self.optimizer.zero_grad()
        return sound

    def _agreed(self, sound: bool) -> bool:
        """Whether the step is sound in all processes; they also hear whether any was told to stop, and how,
        or has no batch.
        """
        signals = self.signals
        flags = torch.tensor(
            [not sound, signals.came, signals.interrupted, self._lost is not None],
            dtype=torch.float32,
            device=self.accelerator.device,
        )
        bad, self.ending, self.interrupted, self.stuck = map(bool, self.accelerator.reduce(flags).tolist())
        return not bad


class StageLearner(Learner):
    """A stage that learns: its weights (``raw``), their average, its losses, and what is known of them.

    order:   what the order of its batches depends on besides the recipe; for who goes on.
    listing: the files that they come from, and their bytes (None: not known).
    """

    def __init__(
        self,
        stage: Stage,
        settings: Training,
        recipe: Config,
        accelerator: Accelerator,
        order: dict | None = None,
        listing: dict[str, int | None] | None = None,
    ) -> None:
        super().__init__(Path(settings.out), settings.batch_size, settings.pictures, accelerator)
        self.settings, self.recipe, self.order, self.listing = settings, recipe, order or {}, listing or {}
        self._prepare(stage.to(accelerator.device))
        self.weights = list(self.raw.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.importance = None
        if settings.timestep_sampler == "loss_second_moment":
            self.importance = LossSecondMoment(self.raw.schedule.timesteps)
        self.means = Means(self.raw.schedule.timesteps)
        self.curves = Curves(self.out, accelerator)

    def _prepare(self, stage: Stage) -> None:
        """The stage as it is (``raw``), its average, and the stage as processes share it (``stage``)."""
        accelerator, sharded = self.accelerator, getattr(self.accelerator, "shards", False)
        if any(p.dim() == 4 for p in stage.parameters()):  # shards are of no other layout than torch's own
            stage = stage.to(memory_format=torch.contiguous_format if sharded else torch.channels_last)
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

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a half cosine to zero."""
        s = self.settings
        warm = s.learning_rate * min(1.0, (step + 1) * s.batch_size / max(s.warmup, 1))
        if s.decay == "none":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.total_steps, 1.0)))

    def _optimise(self, batches: Iterator[Examples]) -> None:
        """One optimiser step over ``accumulate`` batches (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""
        accumulate, parts = self.settings.accumulate, []
        before = self.importance and self.importance.state_dict()
        for micro in range(accumulate):
            examples = self.fetch(batches)
            with self._shared(last=micro == accumulate - 1):
                part, loss = self._losses(examples, self.step * accumulate + micro)
                self.accelerator.backward(loss.mean() / accumulate)
            parts.append(part)
        if self.take(parts, clip_gradient(self.weights, self.settings.clip_norm)):
            self.ema.update(self.raw, self.settings.batch_size, self.seen)
            for part in parts:
                self.means.add(part.terms, part.t)
        elif self.stuck and before:
            self.importance.load_state_dict(before)

    def _shared(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the processes after the last part of a step."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.stage)

    def _losses(self, examples: Examples, index: int) -> tuple[Part, Tensor]:
        """Loss terms of batch number ``index``, and the loss [N] to be averaged.

        A picture's t, noise and drops depend on the seed and its number alone, and its t also on what
        importance sampling has seen. Dropout depends on (seed, rank, index).
        """
        rank, world, seed = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.settings.seed,
        )
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
