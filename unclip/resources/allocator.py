"""What a program has freed stays its own: the next step asks for as much."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # by their numbers in glibc's malloc.h
LARGEST, LARGE = 1 << 30, 32 << 20  # bytes of a block; glibc before 2.35 takes no more than the second
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # by whom runs it


def keep_freed_memory() -> bool:
    """Let glibc keep large blocks when they are freed, in place of handing them back to the system, which
    fills each with zeros before the next use; returns whether it does.

    For programs: it holds for all of a process, whose memory then never shrinks. Elsewhere than under glibc,
    and where the environment says otherwise, nothing happens.
    """
    if any(name in os.environ for name in CHOSEN):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (others have a mallopt of their own)
        large = libc.mallopt(MMAP_THRESHOLD, LARGEST) or libc.mallopt(MMAP_THRESHOLD, LARGE)
        return bool(large and libc.mallopt(TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError, TypeError):
        return False
