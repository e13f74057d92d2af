"""Batches made ahead by worker processes, in the order in which one process would make them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

B = TypeVar("B")
GRACE = 30  # seconds for which a worker serves on when it is told to end


def fed(make: Callable[[int, int], Iterator[B]], start: int, workers: int) -> Iterator[B]:
    """The batches ``start``, ``start + 1``, ... for ever.

    make(first, step): an iterator over every ``step``-th batch from ``first`` on. Of w workers each makes
    every w-th batch; with none they are made here. A mistake of the user's (``ValueError``, ``OSError``)
    in a worker is raised here as it is.
    """
    if not workers:
        yield from make(start, 1)
        return
    # Its own generator: a loader draws its seed from the run's, which would then differ when it goes on.
    loader = DataLoader(
        _Every(make, start),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_outlive,
        generator=torch.Generator(),
    )
    with _quiet_ends():
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@contextmanager
def _quiet_ends() -> Iterator[None]:
    """Of a worker that died torch tells at once, by an error in whatever line the run then is; so that the
    run can be saved it is told where the next batch is asked for, as it is besides.
    """
    number = getattr(signal, "SIGCHLD", None)
    before = number and signal.getsignal(number)
    yield
    if number and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


class _Every(IterableDataset):
    """A worker's share of the batches; an error becomes its last item."""

    def __init__(self, make: Callable[[int, int], Iterator[B]], start: int) -> None:
        self.make, self.start = make, start

    def __iter__(self) -> Iterator[B | Exception]:
        worker = get_worker_info()
        try:
            yield from self.make(self.start + worker.id, worker.num_workers)
        except (ValueError, OSError) as error:
            yield error


def _as_it_is(batch: B) -> B:
    return batch


def _outlive(_: int) -> None:
    """Signals that end a run come to its workers too, and the run still needs them for its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(GRACE))
