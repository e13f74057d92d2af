"""A folder of pictures that says what is in it, and refuses to mix what does not belong together.

``index.jsonl`` has a line for every complete picture (file, line, prompt, k, seed, model), in order;
``batch.json`` the options that they were all drawn with.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from PIL.Image import Image

from ..data.images import save_png
from ..files import write_json, written_aside

INDEX, OPTIONS = "index.jsonl", "batch.json"


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
        self.rows = self._read()
        misfits = self._misfits(lines, options, overwrite)
        for file in misfits:
            (self.folder / file).unlink(missing_ok=True)
            del self.rows[file]
        self._write()
        write_json(self.folder / OPTIONS, dict(options))

    def __enter__(self) -> Album:
        self._stream = open(self.folder / INDEX, "a", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._write()

    def __contains__(self, file: str) -> bool:
        return file in self.rows

    def add(self, row: dict[str, object], picture: Image) -> None:
        """Save ``picture`` as ``row["file"]``, whole or not at all, and then list it."""
        save_png(picture, self.folder / row["file"])
        self._stream.write(_line(row))
        self.rows[row["file"]] = row

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be made a folder: {error.strerror}") from None
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"{self.folder} cannot be written to")

    def _read(self) -> dict[str, dict]:
        """The rows whose pictures are there; the line that a killed run left half is none."""
        path, rows = self.folder / INDEX, {}
        if not path.exists():
            return rows
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(row, dict) or not {"file", "line", "prompt", "k"} <= row.keys():
                    raise ValueError(f"{path} is no index of pictures; name another folder")
                if not _is_own(row["file"]):  # such a file may be overwritten, and removed
                    raise ValueError(
                        f"{path} names {row['file']!r}, which this program does not write; name "
                        "another folder"
                    )
                if (self.folder / row["file"]).is_file():
                    rows[row["file"]] = row
        return rows

    def _misfits(self, lines: Mapping[int, str], options: Mapping[str, object], overwrite: bool) -> list[str]:
        """Files of other options or of lines that say something else now."""
        path = self.folder / OPTIONS
        try:
            old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
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
    return isinstance(file, str) and re.fullmatch(r"\d{4,}-[^/\\\0]+\.png", file) is not None


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _differences(changed: Mapping[str, tuple[object, object]]) -> str:
    def said(value: object) -> str:
        return "the model's default" if value is None else str(value)

    return "; ".join(f"{key} {said(old)}, not {said(new)}" for key, (old, new) in changed.items())


def _moved(row: Mapping[str, object], lines: Mapping[int, str]) -> str:
    now = lines.get(row["line"])
    return f"line {row['line']} was '{row['prompt']}' and is {'gone' if now is None else repr(now)}"
