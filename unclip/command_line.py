"""What all programs share: how a command line is read, and how a mistake ends."""

from __future__ import annotations

import argparse
import errno
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from .resources.allocator import keep_freed_memory


class Parser(argparse.ArgumentParser):
    """A command line whose help stands as it is written, and whose flags are never abbreviated: what an
    abbreviation means would change with the next flag."""

    def __init__(
        self, prog: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def check_numbers(args: argparse.Namespace, **ranges: tuple[float, float]) -> None:
    """Refuse, by ``ValueError``, arguments out of their range (least, most); None is one left out."""
    for name, (least, most) in ranges.items():
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and not value >= least:
            raise ValueError(f"{flag} must be at least {least:,}, not {value:,}")
        if value is not None and not value <= most:
            raise ValueError(f"{flag} must be at most {most:,}, not {value:,}")


WORKERS = 1, 1024  # processes or threads of a program


def ended(name: str, work: Callable[[], object]) -> int:
    """Call ``work``; returns the exit code: what it returns if that is one, else 0; 2 after a mistake, which
    is one message and no traceback, or 130 after Ctrl-C. A defect of ours is raised."""
    keep_freed_memory()
    try:
        code = work()
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = explained(error)
        if message is None:
            raise
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


# What libraries raise, by the name of its class, and what to do about it.
OF_LIBRARIES = {
    "SafetensorError": "a file of weights is damaged, or no safetensors file; fetch or save it anew",
    "UnpicklingError": "a file holds something else than tensors, and is not opened; fetch it anew",
    "BadZipFile": "a file is damaged, or something else than its name says; fetch it anew",
    "EOFError": "a file ends too early; fetch or save it anew",
    "DecompressionBombError": "a picture has more pixels than are decoded; make it smaller first",
    "RecursionError": "something in a file or an argument is nested too deep",
}
NO_MEMORY = "there is not enough memory; draw or train fewer at a time (--batch-size), or take bfloat16"
# What torch says in a RuntimeError that is no defect of ours.
OF_TORCH = {
    "out of memory": NO_MEMORY,
    "allocate memory": NO_MEMORY,
    "not enough memory": NO_MEMORY,
    "PytorchStreamReader": "a file of weights is damaged, or was not written by torch; fetch it anew",
    "loading state_dict": "weights do not fit their network; fetch the model anew",
    "CUDA error": "the GPU failed; run the command again, or with --device cpu",
    "CUDA driver": "the GPU cannot be used; look at its driver, or take --device cpu",
}


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explained(error: Exception) -> str | None:
    """What happened and what to do, for somebody who ran a program; None for a defect of ours."""
    if isinstance(error, OSError) and error.errno in FULL:
        return _full(error)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds:
        return _with_reason(NO_MEMORY, error)
    library = next((OF_LIBRARIES[kind] for kind in kinds if kind in OF_LIBRARIES), None)
    if library is not None:
        return _with_reason(library, error)
    if isinstance(error, ValueError | OSError | ImportError | pickle.PickleError):
        return str(error) or type(error).__name__
    if isinstance(error, RuntimeError):
        known = next((advice for words, advice in OF_TORCH.items() if words in str(error)), None)
        return None if known is None else _with_reason(known, error)
    return None


def _with_reason(advice: str, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "")[:300]
    return f"{advice} ({reason})" if reason else advice


def _full(error: OSError) -> str:
    place = Path(error.filename or ".").resolve()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    return (
        f"the disk is full, or the file too large for it: {error.filename or 'a file'} could not be written, "
        f"and {free / 1e6:,.0f} MB are free there; make room, and run the same command again"
    )
