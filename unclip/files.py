"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; flush it to disk and rename it when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        os.chmod(aside, 0o644)  # mkstemp makes private files
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, values: object) -> None:
    """Write ``values`` as JSON, all or nothing."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def words(text: str, longest: int = 80) -> str:
    """ "A goldfish!" -> "a-goldfish", at most ``longest`` bytes: the words of a file's name."""
    joined = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")
    return joined.encode(errors="ignore")[:longest].decode(errors="ignore").strip("-_") or "picture"
