"""Requests on their way: what happens to them, and what is shown of them before they are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

from PIL import Image
from torch import Tensor

from ....diffusion.samplers import Step
from ....pipeline.request import Wish
from ....stages.inpaint import put_back
from ..errors import Refused


@dataclass(frozen=True)
class Place:
    """Where a request stands in the queue: 1 is drawn next."""

    number: int


@dataclass(frozen=True)
class Partial:
    """A picture that is not finished: [3,S,S] in about [-1,1] at the decoder's size."""

    picture: int  # which one of the request
    index: int  # how many were shown before
    pixels: Tensor


@dataclass(frozen=True)
class Finished:
    """A picture of a request, whole."""

    picture: int
    image: Image.Image


Event = Place | Partial | Finished | Refused


class Left(Exception):
    """Nobody waits for these pictures any more."""


@dataclass(eq=False)
class Job:
    """A request on its way: admitted, waiting, being drawn. Its events come in order."""

    let_go: Callable[[Job], None]  # what is told when it leaves
    model: str = ""
    wish: Wish | None = None
    partials: int = 0
    begun: int = 0  # pictures that were handed out to be drawn
    gone: bool = False
    since: float = field(default_factory=time.monotonic)
    place: int | None = None
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    @property
    def left(self) -> int:
        """Pictures that were not handed out yet."""
        return 0 if self.wish is None else len(self.wish) - self.begun

    async def follow(self) -> AsyncIterator[Event]:
        """What happens, until all pictures are finished; raises ``Refused`` if they cannot be."""
        assert self.wish is not None
        left = len(self.wish)
        while left:
            event = await self.events.get()
            if isinstance(event, Refused):
                raise event
            left -= isinstance(event, Finished)
            yield event

    def leave(self) -> None:
        """Nobody waits for it any more, or it is done; its place is free."""
        self.let_go(self)


@dataclass(frozen=True)
class Part:
    """Pictures of a job that are drawn in one batch."""

    job: Job
    rows: range

    @property
    def wish(self) -> Wish:
        assert self.job.wish is not None
        return self.job.wish.rows(self.rows)


class Show:
    """Follows a batch: shows what is predicted on the way, and ends what nobody waits for."""

    def __init__(
        self, wish: Wish, rows: Sequence[tuple[Job, int]], tell: Callable[[Job, Event], None]
    ) -> None:
        self.wish, self.rows, self.tell = wish, rows, tell
        self.step: Step | None = None

    def watch(self, step: Step) -> None:
        self.step = step

    def progress(self, stage: str, done: int, total: int) -> None:
        """Called after every step, by the drawing thread."""
        if all(job.gone for job, _ in self.rows):
            raise Left
        if stage != "decoder" or self.step is None:
            return
        shown = {job: due(done, total, job.partials) for job, _ in self.rows}
        if all(index is None for index in shown.values()):
            return
        x0 = self.step.x0
        x0 = (x0 if self.wish.canvas is None else put_back(x0, self.wish.canvas.known(x0))).float().cpu()
        for (job, k), pixels in zip(self.rows, x0, strict=True):
            index = shown[job]
            if index is not None:
                self.tell(job, Partial(k, index, pixels))


def due(done: int, total: int, partials: int) -> int | None:
    """Which of so many partial pictures, evenly spaced over the steps, is shown after this step, if any."""
    steps = sorted({ceil(total * (k + 1) / (partials + 1)) for k in range(partials)} - {total})
    return steps.index(done) if done in steps else None
