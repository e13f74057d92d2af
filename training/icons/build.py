"""Building: render every icon at every size and write the shards and their manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from unclip.files import sha256_of, write_json

from .collect import Icon
from .render import render_webp

SPLITS = ("train", "heldout")


class BuildError(RuntimeError):
    """Shards that could not be made; the message says why."""


def build(
    out: Path,
    icons: Sequence[Icon],
    sizes: Sequence[int],
    packages: dict[str, str],  # name -> version, for the manifest
    workers: int | None = None,  # processes; None: one a core; 1: this one
    per_shard: int = 1000,
) -> dict:
    """Write ``out/{size}/{train,heldout}-000000.tar`` and ``out/manifest.json``, which it returns.

    A size that is there already, made of the same icons, is kept. A size appears under its name
    when it is complete. Raises ``BuildError`` when ``out`` cannot be written.
    """
    source = fingerprint(icons, per_shard)
    check_writable(out)
    try:
        old = read_manifest(out)
        entries = old.get("sizes", {}) if old.get("source") == source else {}
        entries = {size: entry for size, entry in entries.items() if complete(out / size, entry)}
        missing = [size for size in sorted(set(sizes)) if str(size) not in entries]
        if missing:
            entries |= write(out, icons, missing, workers, per_shard)
        manifest = {
            "source": source,
            "packages": packages,
            "sizes": {size: entries[size] for size in sorted(entries, key=int)},
        }
        write_json(out / "manifest.json", manifest)
    except OSError as error:
        raise BuildError(f"cannot write {out}: {error}") from error
    return manifest


def check_writable(out: Path) -> None:
    """Make the folder; raise ``BuildError`` when nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise BuildError(f"cannot write {out}: {error}") from error


def write(
    out: Path, icons: Sequence[Icon], sizes: Sequence[int], workers: int | None, per_shard: int
) -> dict[str, dict]:
    """Render in ``workers`` processes; return what the manifest says of each size."""
    from unclip.data.writing import ShardWriter  # late: a rendering process needs no PyTorch

    partial = {size: out / f".{size}.partial" for size in sizes}
    for folder in partial.values():
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was cut short has left
    counts, failed = Counter(), []
    with ExitStack() as stack:
        writers = {
            (size, split): stack.enter_context(ShardWriter(partial[size], split, per_shard))
            for size in sizes
            for split in SPLITS
        }
        for icon, pictures in rendered(icons, sizes, workers):
            if isinstance(pictures, str):
                failed.append(f"{icon.family}/{icon.icon}: {pictures}")
                continue
            split = "heldout" if icon.held_out else "train"
            counts[f"{split} {icon.family}"] += 1
            for size, webp in pictures.items():
                writers[size, split].write(icon.key, sample(icon, webp))
    result = {}
    for size in sizes:
        files = {p.name: p for split in SPLITS for p in writers[size, split].paths}
        result[str(size)] = {
            "samples": {split: writers[size, split].count for split in SPLITS},
            "families": dict(sorted(counts.items())),
            "left out": failed,
            "files": {
                name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for name, path in sorted(files.items())
            },
        }
        shutil.rmtree(out / str(size), ignore_errors=True)
        os.replace(partial[size], out / str(size))
    return result


def rendered(
    icons: Sequence[Icon], sizes: Sequence[int], workers: int | None
) -> Iterator[tuple[Icon, dict[int, bytes] | str]]:
    """Every icon with its pictures, in order, behind a progress bar."""
    jobs = [(icon.drawing, tuple(sizes)) for icon in icons]
    with ExitStack() as stack:
        if workers == 1:
            pictures = map(_render, jobs)
        else:  # spawned, not forked: the caller may hold threads (and locks) of its own
            pool = stack.enter_context(get_context("spawn").Pool(workers))
            pictures = pool.imap(_render, jobs, chunksize=8)
        bar = stack.enter_context(tqdm(pictures, "rendering", len(jobs), unit=" icons"))
        yield from zip(icons, bar, strict=True)


def _render(job: tuple) -> dict[int, bytes] | str:
    return render_webp(*job)


def sample(icon: Icon, webp: bytes) -> dict[str, bytes]:
    """The files of one sample: the picture, the bare name as its caption, the record."""
    record = json.dumps(icon.record(), ensure_ascii=False, sort_keys=True)
    return {"webp": webp, "txt": icon.thing.name.encode(), "json": record.encode()}


def fingerprint(icons: Sequence[Icon], per_shard: int) -> str:
    """Changes with any drawing, any record, and the way that they are cut into shards."""
    total = hashlib.sha256(str(per_shard).encode())
    for icon in icons:
        total.update(json.dumps([icon.record(), vars(icon.drawing)], sort_keys=True).encode())
    return total.hexdigest()


def complete(folder: Path, entry: dict) -> bool:
    """Whether the files that the manifest lists are all there, at their lengths."""
    paths = {folder / name: file["bytes"] for name, file in entry["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def read_manifest(out: Path) -> dict:
    """What an earlier run has left; nothing when there is none or it cannot be read."""
    try:
        return json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
