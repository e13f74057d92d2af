"""Steps whose loss or gradient is not finite: left out, told with t and the samples' keys, and counted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from .curves import append


class NotFinite(ValueError):
    """Too many steps in a row without a finite loss."""


@dataclass(frozen=True)
class Part:
    """A batch that was handled: its samples' keys, t int64 [N], and its loss terms, each [N]."""

    keys: list[str]
    t: Tensor
    terms: dict[str, Tensor]


class Guard:
    """Tells sound steps from others. ``skipped.jsonl`` holds those that were left out."""

    def __init__(self, out: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = out / "skipped.jsonl", accelerator
        self.in_a_row = 0
        self.total = 0

    def sound(self, parts: list[Part], norm: Tensor) -> bool:
        """Whether every loss of this process and the norm of the gradient are finite."""
        losses = torch.cat([part.terms["loss"] for part in parts])
        return bool(norm.isfinite() & losses.isfinite().all())

    def skipped(self, seen: int, parts: list[Part], norm: Tensor) -> None:
        """Report a step that was left out; all processes call it alike.

        Named are the samples whose loss is not finite, and all of the step if it is the gradient alone.
        """
        self.in_a_row += 1
        self.total += 1
        rows = [{"key": key, "t": t, "loss": repr(loss)} for part in parts for key, t, loss in zip(
            part.keys, part.t.tolist(), part.terms["loss"].tolist(), strict=True)]
        rows = gather_object(rows)
        bad = [row for row in rows if row["loss"] in ("nan", "inf", "-inf")]
        if not self.accelerator.is_main_process:
            return
        append(self.path, {"pictures": seen, "gradient": repr(norm.item()), "samples": bad or rows})
        named = [f"{row['key']} (t = {row['t']}, loss {row['loss']})" for row in bad or rows]
        named = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        what = "a loss" if bad else f"the gradient (its norm is {norm.item()}), though no loss,"
        tqdm.write(f"left out the step to {seen:,} pictures, {self.in_a_row} in a row: {what} is not finite: "
                   + named, file=sys.stderr)

    def give_up(self) -> None:
        """End the run; its last save has the weights of the last sound step."""
        raise NotFinite(f"in {self.in_a_row} steps in a row the loss was not finite; {self.path} says where. "
                        "What was saved has the weights of the last sound step; the same command tries the "
                        "pictures after these. A lower learning_rate, or precision=fp32, may help")
