"""A folder of pictures that says what is in it, and refuses to mix what does not belong together.

``index.jsonl`` has a line for every complete picture (file, line, prompt, k, seed, model), in order;
``batch.json`` the options that they were all drawn with.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from ..data.images import save_png
from ..files import (
    make_folder,
    parse_json,
    read_json,
    regular,
    remove_leftovers,
    sole,
    write_json,
    written_aside,
)

INDEX, OPTIONS = "index.jsonl", "batch.json"
OWN = r"\d{4,}-[^/\\\0]+\.png"  # the names that ``draw`` gives
LONGEST_LINE = 1 << 20  # bytes of the index


class Album:
    """Pictures of the lines of a file. A context manager: on leaving, the index is put in order.

    folder:    made if it does not exist.
    lines:     the prompt of every line that has one, by line number.
    options:   what the pictures depend on besides, JSON-able.
    overwrite: remove the pictures that do not fit, instead of refusing them.

    Raises ``ValueError`` if the folder holds pictures of other lines or options, and says which.
    """

    def __init__(
        self,
        folder: str | Path,
        lines: Mapping[int, str],
        options: Mapping[str, object],
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._make()
        with self._alone():
            self.rows = self._read()
            if not overwrite:
                self._check_strangers()
            for file in self._misfits(lines, options, overwrite):
                (self.folder / file).unlink(missing_ok=True)
                del self.rows[file]
            remove_leftovers(self.folder, rf"{OWN}|{re.escape(INDEX)}|{re.escape(OPTIONS)}")
            self._write()
            write_json(self.folder / OPTIONS, dict(options))

    def __enter__(self) -> Album:
        self._lock = self._alone()
        self._lock.__enter__()
        self._stream = open(self.folder / INDEX, "a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
            self._write()
        finally:
            self._lock.__exit__(kind, error, trace)

    def _alone(self) -> AbstractContextManager:
        return sole(self.folder, "draws into")

    def __contains__(self, file: str) -> bool:
        return file in self.rows

    def add(self, row: dict[str, Any], picture: Image.Image, metadata: bool = True) -> None:
        """Save ``picture`` as ``row["file"]``, whole or not at all, and then list it; see ``save_png``."""
        save_png(picture, self.folder / row["file"], metadata)
        self._stream.write(_line(row))
        self.rows[row["file"]] = row

    def _make(self) -> None:
        make_folder(self.folder)
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"{self.folder} cannot be written to")

    def _read(self) -> dict[str, dict]:
        """The rows whose pictures are there, and whole; the line that a killed run left half is none."""
        path = self.folder / INDEX
        rows: dict[str, dict] = {}
        if not path.exists():
            return rows
        with open(regular(path), "rb") as file:
            for number in itertools.count(1):
                line = file.readline(LONGEST_LINE)
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    break
                try:
                    row = parse_json(line, f"line {number} of {path}", line=int, prompt=str, k=int)
                except ValueError as error:
                    raise ValueError(f"{error}; name another folder, or remove that line") from None
                if not _is_own(row.get("file")):  # such a file may be overwritten, and removed
                    raise ValueError(
                        f"{path} names {row.get('file')!r}, which this program does not write; name "
                        "another folder"
                    )
                if _is_whole(self.folder / row["file"]):
                    rows[row["file"]] = row
        return rows

    def _check_strangers(self) -> None:
        """Refuse a folder with pictures that a new album could replace without a word."""
        if (self.folder / OPTIONS).exists():
            return  # pictures that are not listed are those of a run that was killed
        for path in sorted(self.folder.iterdir()):
            if _is_own(path.name) and path.name not in self.rows:
                raise ValueError(
                    f"{path} is in no index, and could be replaced. Name another folder, or give --overwrite"
                )

    def _misfits(self, lines: Mapping[int, str], options: Mapping[str, object], overwrite: bool) -> list[str]:
        """Files of other options or of lines that say something else now."""
        path = self.folder / OPTIONS
        old = read_json(path, "what the pictures were drawn with") if path.exists() else {}
        changed = {
            key: (old.get(key), options.get(key))
            for key in sorted({*old, *options})
            if old.get(key) != options.get(key)
        }
        moved = [row for row in self.rows.values() if lines.get(row["line"]) != row["prompt"]]
        misfits = list(self.rows) if changed else [row["file"] for row in moved]
        if misfits and not overwrite:
            said = (
                f"drawn with {_differences(changed)}"
                if changed
                else f"of other prompts: {_moved(moved[0], lines)}"
            )
            raise ValueError(
                f"{self.folder} holds {len(misfits)} pictures {said}. Name another folder, "
                "or give --overwrite to have them replaced"
            )
        return misfits

    def _write(self) -> None:
        rows = sorted(self.rows.values(), key=lambda row: (row["line"], row["k"]))
        with written_aside(self.folder / INDEX) as aside, open(aside, "w", encoding="utf-8") as file:
            file.writelines(map(_line, rows))


def _is_own(file: object) -> bool:
    """Whether a name is one that ``draw`` gives: in the folder itself, its line first."""
    return isinstance(file, str) and re.fullmatch(OWN, file) is not None


def _is_whole(path: Path) -> bool:
    """Whether a file is a PNG with all its parts and the right sums."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except Exception:  # PIL's reader raises whatever its parsing of a broken file runs into
        return False
    return True


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _differences(changed: Mapping[str, tuple[object, object]]) -> str:
    def said(value: object) -> str:
        return "the model's default" if value is None else str(value)

    return "; ".join(f"{key} {said(old)}, not {said(new)}" for key, (old, new) in changed.items())


def _moved(row: Mapping[str, Any], lines: Mapping[int, str]) -> str:
    now = lines.get(row["line"])
    return f"line {row['line']} was '{row['prompt']}' and is {'gone' if now is None else repr(now)}"
