"""What a run is given: batches of examples, and the task that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from unclip.stages import Conditions, Stage


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

    Two that may be left out: ``order``, a dict, says what the order of its batches depends on besides the
    recipe; ``listing``, {path: bytes or None}, which files they come from.
    """

    def batches(self, start: int) -> Iterator[Examples]:
        """This process's batches from number ``start`` on, for ever, on the stage's device."""

    def validation(self) -> list[Examples]:
        """Held-out batches, always the same; empty = no validation."""

    def draw(self, stage: Stage) -> Image.Image | None:
        """A grid of samples to look at."""
