"""Requests that wait, drawn together where they agree, by one thread that alone touches the models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from ....batch.joined import agree, joined
from ....pipeline.drawing import Drawing, drawn
from ....pipeline.request import Wish
from ..errors import Refused, refusal
from .jobs import Event, Finished, Job, Left, Part, Place, Show
from .metrics import Metrics

log = logging.getLogger("unclip.server")
T = TypeVar("T")
MOMENT = 0.005  # seconds that a batch waits for others to join it
PATIENCE = 60  # seconds, the longest that a client is asked to stay away


class Batcher:
    """The queue of a server, and the thread that draws.

    models:     by name; only the thread uses them.
    most:       requests that may be in the house without being drawn yet.
    together:   pictures that are drawn in one run.
    """

    def __init__(self, models: Mapping[str, Drawing], most: int, together: int, metrics: Metrics) -> None:
        self.models, self.most, self.together, self.metrics = models, most, together, metrics
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self.admitted: set[Job] = set()  # that hold a place: not begun
        self.waiting: deque[Job] = deque()
        self.news = asyncio.Event()
        self.closing = self.busy = False
        self.pace = 1.0  # seconds a picture, lately
        self.loop: asyncio.AbstractEventLoop | None = None  # once it runs

    def admit(self) -> Job:
        """A place for a request, before its body is read; ``Refused`` if there is none."""
        if self.closing:
            raise Refused("the server is shutting down", 503, headers={"Retry-After": "10"})
        if len(self.admitted) >= self.most:
            seconds = min(max(1, round(self.pace * sum(job.left for job in self.waiting))), PATIENCE)
            raise Refused(
                f"{self.most} requests are waiting, which are the most; come again in {seconds} seconds",
                429,
                headers={"Retry-After": str(seconds)},
            )
        job = Job(self.let_go)
        self.admitted.add(job)
        self.metrics.waiting.set(len(self.admitted))
        return job

    async def apart(self, job: Job, work: Callable[[], T]) -> T:
        """What needs the models besides drawing, done by their thread between two batches."""

        def unless_gone() -> T:
            if job.gone:
                raise Left
            return work()

        return await asyncio.get_running_loop().run_in_executor(self.thread, unless_gone)

    def put(self, job: Job, model: str, wish: Wish, partials: int = 0) -> None:
        """Let a job wait for its turn."""
        if self.closing:
            raise Refused("the server is shutting down", 503, headers={"Retry-After": "10"})
        job.model, job.wish, job.partials = model, wish, partials
        self.waiting.append(job)
        self._tell_places()
        self.news.set()

    def let_go(self, job: Job) -> None:
        job.gone = True
        self.admitted.discard(job)
        if job in self.waiting:
            self.waiting.remove(job)
            self._tell_places()
        self.metrics.waiting.set(len(self.admitted))

    def close(self) -> None:
        """Refuse what waits and what comes; what is being drawn is finished."""
        self.closing = True
        for job in [job for job in self.waiting if not job.begun]:
            self.waiting.remove(job)
            job.events.put_nowait(Refused("the server is shutting down", 503))
        self.news.set()

    def close_soon(self) -> None:
        """``close``, from a signal's handler or another thread."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.close)

    async def run(self) -> None:
        """Draw until the server is closed; to be run as one task."""
        self.loop = loop = asyncio.get_running_loop()
        while not (self.closing and not self.waiting):
            await self.news.wait()
            self.news.clear()
            await asyncio.sleep(MOMENT)
            while parts := self._next():
                self.busy = True
                start = time.monotonic()
                await loop.run_in_executor(self.thread, self._draw, parts, loop)
                count = sum(len(part.rows) for part in parts)
                self.pace += 0.3 * ((time.monotonic() - start) / count - self.pace)
                self.busy = False

    def _next(self) -> list[Part]:
        """The pictures of the first in the queue, and of those behind it that agree with it."""
        parts: list[Part] = []
        room = self.together
        for job in list(self.waiting):
            first = parts[0].job if parts else job
            assert job.wish is not None and first.wish is not None
            if job is not first and not (job.model == first.model and agree(job.wish, first.wish)):
                continue
            rows = range(job.begun, min(len(job.wish), job.begun + room))
            if not job.begun:
                self.metrics.seconds.labels("queue").observe(time.monotonic() - job.since)
            room -= len(rows)
            job.begun = rows.stop
            self.admitted.discard(job)
            if job.begun == len(job.wish):
                self.waiting.remove(job)
            parts.append(Part(job, rows))
            if not room:
                break
        self.metrics.waiting.set(len(self.admitted))
        self._tell_places()
        return parts

    def _tell_places(self) -> None:
        for number, job in enumerate((job for job in self.waiting if not job.begun), 1):
            if job.place != number and (self.busy or job.place is not None or number > 1):
                job.place = number
                job.events.put_nowait(Place(number))

    def _draw(self, parts: Sequence[Part], loop: asyncio.AbstractEventLoop) -> None:
        """A batch, in the thread; what goes wrong with several requests is tried with each alone."""
        parts = [part for part in parts if not part.job.gone]
        if not parts:
            return
        rows = [(part.job, k) for part in parts for k in part.rows]
        model = parts[0].job.model

        def tell(job: Job, event: Event) -> None:
            loop.call_soon_threadsafe(job.events.put_nowait, event)

        try:
            wish = joined([part.wish for part in parts])
            show = Show(wish, rows, tell)
            wish = replace(wish, watch=show.watch, progress=show.progress)
            self.metrics.batch.observe(len(wish))
            pictures = drawn(
                self.models[model], [wish], lambda stage: self.metrics.seconds.labels(stage).time()
            )
            for (job, k), picture in zip(rows, pictures, strict=True):
                tell(job, Finished(k, picture))
            self.metrics.pictures.labels(model).inc(len(rows))
        except Left:
            return
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._draw([part], loop)
                return
            tell(parts[0].job, refusal(error))
