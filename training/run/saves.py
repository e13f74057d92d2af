"""Saves of a run: written whole or not at all, the last two kept, and a damaged one recognised.

A save is a folder of files and a manifest of their sizes and sums, which is written last. It is made aside
(``state.new``), forced to the disk, and renamed to ``state``, while the one before becomes ``state.old``: at
any moment a power cut leaves a whole save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unclip.checkpoint import CheckpointError
from unclip.files import flush, write_json

LAST, BEFORE, ASIDE, DAMAGED = "state", "state.old", "state.new", "state.damaged"
MANIFEST = "manifest.json"
PROGRESS = "progress.pt"  # the one file that saves of earlier versions have too
NAMES = {MANIFEST, PROGRESS, "pytorch_model.bin", "ema.bin", "optimizer.bin", "phase.pt"}  # all there are


def write(out: str | Path, files: Mapping[str, object], **facts: object) -> None:
    """Save: ``files`` are names and what ``torch.load(weights_only=True)`` reads back; ``facts`` go into the
    manifest.
    """
    out = Path(out)
    _check_own(out)
    aside = out / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, content in files.items():
        torch.save(content, aside / name)
    with ThreadPoolExecutor(4) as threads:
        sums = dict(zip(files, threads.map(_kept, [aside / name for name in files]), strict=True))
    write_json(aside / MANIFEST, {**facts, "files": sums})
    flush(aside)
    _take_its_place(out)


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
    found = [None, [], None]  # folder, complaints, error
    if accelerator.is_main_process:
        try:
            found[:2] = newest(out)
        except CheckpointError as error:
            found[2] = str(error)
    folder, complaints, error = broadcast_object_list(found)
    if error is not None:
        raise CheckpointError(error)
    return folder, complaints


def fault(folder: Path) -> str | None:
    """What is wrong with a save; None if it is whole, as far as its version allows to tell."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return _fault_of_old(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {wanted['bytes']:,}"
    with ThreadPoolExecutor(4) as threads:
        sums = threads.map(_sum, [folder / name for name in files])
        for (name, wanted), found in zip(files.items(), sums, strict=True):
            if found != wanted["sha256"]:
                return f"the content of {name} has changed"
    return None


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


def _fault_of_old(folder: Path) -> str | None:
    """Saves of earlier versions have no manifest, but were complete before they had their name."""
    try:
        progress = load(folder / PROGRESS)
    except CheckpointError:
        return f"{MANIFEST} and {PROGRESS} are missing or cannot be read"
    return f"{MANIFEST} is missing" if "format" in progress else None


def _kept(path: Path) -> dict:
    """Force a file to the disk; its size and sum."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": _sum(path)}


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _take_its_place(out: Path) -> None:
    """``state.new``, which is whole, becomes ``state``; ``state`` becomes ``state.old``."""
    if (out / LAST).is_dir():
        shutil.rmtree(out / BEFORE, ignore_errors=True)
        os.replace(out / LAST, out / BEFORE)
    os.replace(out / ASIDE, out / LAST)
    flush(out)
