"""Saves of a run: written whole or not at all, the last two kept, and a damaged one recognised.

A save is a folder of files and a manifest of their sizes and sums, which is written last. It is made aside
(``state.new``), forced to the disk, and renamed to ``state``, while the one before becomes ``state.old``: at
any moment a power cut leaves a whole save.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from unclip.checkpoint import CheckpointError
from unclip.files import flush, read_json, sha256_of, write_json

from .settings import alone

LAST, BEFORE, ASIDE, DAMAGED = "state", "state.old", "state.new", "state.damaged"
MANIFEST = "manifest.json"
PROGRESS = "progress.pt"
NAMES = {MANIFEST, PROGRESS, "pytorch_model.bin", "ema.bin", "optimizer.bin", "phase.pt"}  # all there are


def write(out: str | Path, files: Mapping[str, object], **facts: object) -> None:
    """Save: ``files`` are names and what ``torch.load(weights_only=True)`` reads back; ``facts`` go into the
    manifest.

    Raises ``OSError`` that says how much room is missing if the disk is full; then nothing of it is left, and
    the saves before it are there.
    """
    out = Path(out)
    _check_own(out)
    aside, size = out / ASIDE, bytes_of(files)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if (free := shutil.disk_usage(out).free) < size:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free")
        for name, content in files.items():
            torch.save(content, aside / name)
        with ThreadPoolExecutor(4) as threads:
            sums = dict(zip(files, threads.map(_sealed, [aside / name for name in files]), strict=True))
        write_json(aside / MANIFEST, {**facts, "files": sums})
        flush(aside)
    except (OSError, RuntimeError) as error:  # as torch reports it
        written = sum(path.stat().st_size for path in aside.iterdir())
        shutil.rmtree(aside, ignore_errors=True)
        raise _no_room(out, size, written, error) from error
    _take_its_place(out)


def bytes_of(content: object) -> int:
    """How many bytes all tensors in nested dicts and lists take."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(bytes_of, content.values()))
    return sum(map(bytes_of, content)) if isinstance(content, list | tuple) else 0


def _no_room(out: Path, size: int, written: int, error: Exception) -> OSError:
    free = shutil.disk_usage(out).free
    missing = size - free if free < size else max(size - written, 1)
    before = "the saves before it are untouched" if is_one(out / LAST) else "there is none before it"
    reason = str(error).splitlines()[0]
    return OSError(
        f"there is no room for a save in {out}: it takes {size:,} bytes, and at least {missing:,} are "
        f"missing ({reason}); {before}. Make room, and the same command goes on"
    )


def is_one(folder: Path) -> bool:
    """Whether a folder has what a save has, whole or not."""
    return (folder / MANIFEST).is_file() or (folder / PROGRESS).is_file()


def newest(out: str | Path) -> tuple[Path | None, list[str]]:
    """The newest whole save (None if there is none), and what was found wrong with later ones.

    To be called by one process, before the run goes on: it also ends what a crash left undone. Raises
    ``CheckpointError`` if there are saves, but none that is whole, or a folder of theirs that is none.
    """
    out, complaints = Path(out), []
    _check_own(out)
    if (out / ASIDE / MANIFEST).is_file() and fault(out / ASIDE) is None:
        _take_its_place(out)
    shutil.rmtree(out / ASIDE, ignore_errors=True)
    for name in (LAST, BEFORE):
        if not (out / name).is_dir():
            continue
        wrong = fault(out / name)
        if wrong is None:
            if complaints:  # out of the way of the next save, which else would push out this good one
                shutil.rmtree(out / DAMAGED, ignore_errors=True)
                os.replace(out / LAST, out / DAMAGED)
            return out / name, complaints
        complaints.append(f"{out / name} is damaged ({wrong})")
    if complaints:
        raise CheckpointError(
            f"{'; '.join(complaints)}: no save is left to go on from. Choose another out=, "
            "or remove these folders to begin anew"
        )
    return None, complaints


def agreed(out: str | Path, accelerator: Accelerator) -> tuple[Path | None, list[str]]:
    """``newest`` for all processes: one looks, and what it finds or raises, all return or raise."""
    return alone(accelerator, lambda: newest(out))


def fault(folder: Path) -> str | None:
    """What is wrong with a save; None if it is whole."""
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    try:
        files = manifest(folder)["files"]
    except CheckpointError as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {wanted['bytes']:,}"
    with ThreadPoolExecutor(4) as threads:
        sums = threads.map(sha256_of, [folder / name for name in files])
        for (name, wanted), sha256 in zip(files.items(), sums, strict=True):
            if sha256 != wanted["sha256"]:
                return f"the content of {name} has changed"
    return None


def manifest(folder: Path) -> dict:
    """What a save says of itself: "files", with the "bytes" and "sha256" of each, and its facts.

    Raises ``CheckpointError`` for one that is none.
    """
    try:
        facts = read_json(folder / MANIFEST, "what a save says of itself", files=dict)
        known = all(
            name in NAMES and isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)
            for name, entry in facts["files"].items()
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError):
        known = False
    if not known:
        raise CheckpointError(f"{folder / MANIFEST} names what no save has")
    return facts


def load(path: Path) -> object:
    """What a file of a save holds, on the CPU, read from the disk as it is used.

    Raises ``CheckpointError`` for a file that is not there or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}; out must lie on a disk that all machines share") from None
    except Exception as error:  # of a damaged file torch, zipfile and pickle say it in many ways
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _check_own(out: Path) -> None:
    """Refuse a run's folder in which something else has the name of a save: saves are removed in time."""
    for name in (LAST, BEFORE, ASIDE, DAMAGED):
        folder = out / name
        if not os.path.lexists(folder):
            continue
        plain = folder.is_dir() and not folder.is_symlink()
        names = {path.name for path in folder.iterdir()} if plain else {"."}
        names = {name for name in names if not name.startswith(f".{MANIFEST}.")}  # that a crash left aside
        if names - NAMES:
            raise CheckpointError(
                f"{folder} is no save of a run, and would be removed by one; choose "
                "another out=, or move it away"
            )


def _sealed(path: Path) -> dict:
    """Force a file to the disk; its size and sum."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _take_its_place(out: Path) -> None:
    """``state.new``, which is whole, becomes ``state``; ``state`` becomes ``state.old``."""
    if (out / LAST).is_dir():
        shutil.rmtree(out / BEFORE, ignore_errors=True)
        os.replace(out / LAST, out / BEFORE)
    os.replace(out / ASIDE, out / LAST)
    flush(out)
