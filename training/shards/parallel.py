"""Work shared out to processes, in order, whatever becomes of one of them. Imports no PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")


def ordered(
    function: Callable[[A], B],  # can be pickled, and raises nothing
    items: Iterable[A],
    workers: int = 1,  # processes; 1: this one
    died: Callable[[A], B] | None = None,  # the result for an item that killed its process
) -> Iterator[tuple[A, B]]:
    """Every item with its result, in the order of the items; few of them are in memory at a time.

    A process that dies (of a fault in a decoder, or of too little memory) costs the item that killed it.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    items, pool = iter(items), _pool(workers)
    try:
        pending: deque[tuple[A, Future]] = deque()
        while True:
            for item in islice(items, 8 * workers - len(pending)):
                pending.append((item, _submitted(pool, function, item)))
            if not pending:
                return
            item, future = pending[0]
            try:
                result = future.result()
            except BrokenProcessPool:
                if died is None:
                    raise
                pool.shutdown(cancel_futures=True)
                yield from _one_by_one(function, [item for item, _ in pending], died)
                pending.clear()
                pool = _pool(workers)
                continue
            pending.popleft()
            yield item, result
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, function: Callable[[A], B], item: A) -> Future:
    """Given to the pool; of one that has broken since, the future says so."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _one_by_one(function: Callable[[A], B], items: list[A], died: Callable[[A], B]) -> Iterator[tuple[A, B]]:
    """One at a time, to see which it was."""
    pool = _pool(1)
    try:
        for item in items:
            try:
                result = pool.submit(function, item).result()
            except BrokenProcessPool:
                result = died(item)
                pool.shutdown()
                pool = _pool(1)
            yield item, result
    finally:
        pool.shutdown()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller may hold threads (and locks) of its own.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
