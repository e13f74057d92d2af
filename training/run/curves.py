"""The curves of a run: means of loss terms, in training and on held-out data. They are in ``metrics.jsonl``,
and with those who draw them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from unclip.config import ConfigError
from unclip.diffusion.noise import fold
from unclip.files import written_aside
from unclip.stages import Stage

from .examples import Examples

QUARTILES = 4
CURVES = "metrics.jsonl"  # the points of a run


class Means:
    """Means of loss terms over pictures, of all t and by quartile of t; sums are kept in between."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        self.names: list[str] = []
        self.sums: Tensor | None = None  # [4, K + 1]: of K terms, and of ones; by quartile of t

    def add(self, terms: dict[str, Tensor], t: Tensor) -> None:
        """Terms [N] by name, the same names every time, at t int64 [N] in 1..T."""
        self.names = list(terms)
        exact = torch.float32 if t.device.type == "mps" else torch.float64
        values = torch.stack(
            [
                *(term.detach().to(exact) for term in terms.values()),
                torch.ones(len(t), device=t.device, dtype=exact),
            ],
            dim=1,
        )
        quartile = (t - 1) * QUARTILES // self.timesteps
        of = quartile == torch.arange(QUARTILES, device=t.device)[:, None]  # [4, N]
        sums = of.to(exact) @ values
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The means by name, over all processes if an accelerator is given; and begin anew."""
        if self.sums is None:
            return {}
        sums = (self.sums if accelerator is None else accelerator.reduce(self.sums)).cpu()
        self.sums = None
        *columns, count = sums.T.tolist()
        means = {name: sum(column) / sum(count) for name, column in zip(self.names, columns, strict=True)}
        for name, column in zip(self.names, columns, strict=True):
            means |= {f"{name}/quartile{q}": column[q] / count[q] for q in range(QUARTILES) if count[q]}
        return means

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes up again."""
        return {"names": self.names, "sums": None if self.sums is None else self.sums.cpu()}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Go on from a saved state."""
        self.names = list(state["names"])
        self.sums = None if state["sums"] is None else state["sums"].clone().to(device)


@torch.no_grad()
def validate(
    module: Stage,
    batches: Sequence[Examples],
    timesteps: int,
    accelerator: Accelerator,
    sharded: bool = False,
) -> dict[str, float]:
    """Means by name, over all t and by quartile; {} if there is nothing to validate on.

    The batches are shared out among the processes; with shared-out weights all compute all, since they
    need each other's parts. An error in one process is raised in all: ``RuntimeError``.
    """
    rank, world = (0, 1) if sharded else (accelerator.process_index, accelerator.num_processes)
    rows, wrong = [], None
    try:
        for number, examples in list(enumerate(batches))[rank::world]:
            with accelerator.autocast():
                rows.append((number, *_held_out_terms(module, examples, number, timesteps)))
    except Exception as error:
        if sharded or world == 1:
            raise
        wrong = f"{type(error).__name__}: {error}"
    if not sharded:
        if errors := [error for error in gather_object([wrong]) if error]:
            raise RuntimeError(errors[0])
        rows = sorted(gather_object(rows), key=lambda row: row[0])
    means = Means(timesteps)
    for _, terms, t in rows:
        means.add(terms, t)
    return means.take()


def _held_out_terms(
    module: Stage, examples: Examples, number: int, timesteps: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The loss terms of batch number ``number``, a noise of its own at every level alike, and their t."""
    x0, n = examples.x0, len(examples)
    generator = torch.Generator(x0.device).manual_seed(fold(1, number))
    t = 1 + torch.arange(n, device=x0.device) * timesteps // n
    noise = torch.randn(x0.shape, device=x0.device, generator=generator)
    terms = module(x0, t, noise, examples.conditions)
    return {name: term.float().cpu() for name, term in terms.items() if name != "loss"}, t.cpu()


class Curves:
    """Points of curves, counted in pictures: a line of JSON that any program can read, and trackers."""

    def __init__(self, out: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = out / CURVES, accelerator

    def start(self, seen: int, recipe: dict) -> None:
        """Begin, or go on after ``seen`` pictures: what was recorded later will be recorded again."""
        main = self.accelerator.is_main_process
        if main:
            cut(self.path, seen)
        run = {"dir": str(self.path.parent), "name": self.path.parent.name, "resume": "allow"}
        if main and "wandb" in self._trackers():
            run["id"] = self._run_id()
        try:
            self.accelerator.init_trackers(
                "unclip",
                config=None,
                init_kwargs={"tensorboard": {"purge_step": seen + 1}, "wandb": {**run, "config": recipe}},
            )
        except Exception as error:
            if "wandb" not in self._trackers():
                raise
            raise ConfigError(
                f"wandb does not start: {error}. Log in (wandb login), set WANDB_MODE=offline, "
                "or leave it out of train.trackers"
            ) from error

    def _trackers(self) -> list[str]:
        return [getattr(name, "value", name) for name in self.accelerator.log_with]

    def _run_id(self) -> str:
        """wandb's name of this run, the same when it goes on."""
        path = self.path.parent / "wandb-id"
        if not path.is_file():
            with written_aside(path) as aside:
                aside.write_text(os.urandom(6).hex(), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()

    def record(self, seen: int, values: dict[str, float]) -> None:
        """A point after ``seen`` pictures."""
        self.accelerator.log(values, step=seen)
        if self.accelerator.is_main_process:
            append(self.path, {"pictures": seen, **values})

    def validated(self, seen: int) -> bool:
        """Whether there is a point of validation after ``seen`` pictures."""
        return any(
            point["pictures"] == seen and any(name.startswith("validation/") for name in point)
            for point in read(self.path)
        )

    def best(self, figure: str | None) -> Best | None:
        """See ``best_of``, of this run."""
        return best_of(self.path, figure)

    def flush(self) -> None:
        """Force the points to the disk."""
        if self.path.is_file():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())


@dataclass(frozen=True)
class Best:
    """The least validation error of a run: of what, how much, after how many pictures; and how many
    validations came after it."""

    figure: str
    value: float
    pictures: int
    since: int


def best_of(path: Path, figure: str | None) -> Best | None:
    """The best validation of a run, by a figure such as "mse" (None: the first one that there is); None if
    there is none. Of equal ones the first.

    Raises ``ConfigError`` for a figure that validation does not have.
    """
    points = [point for point in read(path) if any(name.startswith("validation/") for name in point)]
    if not points:
        return None
    names = [name.removeprefix("validation/") for name in points[-1] if name.startswith("validation/")]
    name = figure_of(names, figure)
    known = [point for point in points if f"validation/{name}" in point]
    best = min(known, key=lambda point: point[f"validation/{name}"])
    since = len(known) - 1 - known.index(best)
    return Best(name, best[f"validation/{name}"], best["pictures"], since)


def figure_of(names: Sequence[str], figure: str | None) -> str:
    """The figure that is asked for; ``ConfigError`` if it is not one of those that there are."""
    if figure is None:
        return names[0]
    if figure not in names:
        raise ConfigError(f"train.keep_by: validation has no {figure}, but {', '.join(names)}")
    return figure


def append(path: Path, point: dict) -> None:
    """Add a line of JSON to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")


def read(path: Path) -> list[dict]:
    """The points in a file of lines of JSON; a last line that a crash cut short is left out."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            points.append(json.loads(line))
        except ValueError:
            break
    return points


def cut(path: Path, seen: int) -> None:
    """Leave out the points after more than ``seen`` pictures."""
    if not path.is_file():
        return
    lines = [json.dumps(point) + "\n" for point in read(path) if point["pictures"] <= seen]
    text = "".join(lines)
    if text != path.read_text(encoding="utf-8"):
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
