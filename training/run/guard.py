"""What guards a run: steps that are not sound are left out, and a signal waits for the end of a step.

While steps in a row are left out nothing is saved: the weights may have gone astray before a loss says so.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from .curves import append

HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # not on every system


class NotFinite(ValueError):
    """Too many steps in a row without a finite loss."""


@dataclass(frozen=True)
class Part:
    """A batch that was handled: its samples' keys, t int64 [N] (None where there is none), and its loss
    terms, each [N].
    """

    keys: list[str]
    t: Tensor | None
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
        rows = gather_object([row for part in parts for row in _rows(part)])
        bad = [row for row in rows if row["loss"] in ("nan", "inf", "-inf")]
        if not self.accelerator.is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append(self.path, {"pictures": seen, "gradient": repr(norm.item()), "samples": bad or rows})
        named = [_named(row) for row in bad or rows]
        named = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        what = "a loss" if bad else f"the gradient (its norm is {norm.item()}), though no loss,"
        tqdm.write(
            f"left out the step to {seen:,} pictures, {self.in_a_row} in a row: {what} is not finite: "
            + named,
            file=sys.stderr,
        )

    def give_up(self, save: str, rate: str = "learning_rate") -> None:
        """End the run, which has not been saved since these steps began.

        save: the last one before them, in words. rate: the learning rate's name in the recipe.
        """
        raise NotFinite(
            f"in {self.in_a_row} steps in a row the loss was not finite; {self.path} says where. Nothing was "
            f"saved since they began: the same command goes on from {save}. A lower {rate}, or "
            "precision=fp32, may help; a larger max_skipped, if it is these samples alone"
        )


def _rows(part: Part) -> list[dict]:
    """What is written of each sample of a step that was left out."""
    t = [{}] * len(part.keys) if part.t is None else [{"t": t} for t in part.t.tolist()]
    losses = part.terms["loss"].tolist()
    return [{"key": key, **t, "loss": repr(loss)} for key, t, loss in zip(part.keys, t, losses, strict=True)]


def _named(row: dict) -> str:
    return f"{row['key']} (" + (f"t = {row['t']}, " if "t" in row else "") + f"loss {row['loss']})"


class Signals:
    """Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed: remembered, so that a run ends
    after a whole step, when its state can be saved.

    Inside the block such a signal is only noted: in ``came``, and in ``interrupted`` if it is Ctrl-C. A
    second Ctrl-C ends the run at once. A SIGHUP that is ignored (``nohup``) stays so.
    """

    def __init__(self) -> None:
        self.came = self.interrupted = False
        self._first = 0.0
        self._before: dict = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Signals:
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in (signal.SIGINT, signal.SIGTERM, *HANGUP):
            if number in HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Launchers hand on a Ctrl-C that has reached their processes already: that is not a second one."""
        if self.came and number == signal.SIGINT and time.monotonic() - self._first > 2:
            raise KeyboardInterrupt
        if not self.came:
            self.came, self._first = True, time.monotonic()
            self.interrupted = number == signal.SIGINT
        if number in HANGUP:
            self._let_go()

    def _let_go(self) -> None:
        """What is written to a terminal that was closed is an error, which must not end the run first."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)
