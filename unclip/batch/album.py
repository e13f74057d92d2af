"""A folder of pictures that says what is in it, and refuses to mix what does not belong together.

``batch.json`` says how all of it is drawn; ``index/000012-DIGEST.jsonl`` has a line for every picture of a
block of rows, and is there when the block is complete. ``index.jsonl`` and ``errors.jsonl`` are all in one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import make_folder, parse_json, read_json, remove_leftovers, words, written_aside

OPTIONS, INDEX, ERRORS = "batch.json", "index.jsonl", "errors.jsonl"
BLOCKS, LEASES = "index", "leases"
FORM = 2
PER_FOLDER = 1000  # lines whose pictures share a folder
OWN = r"\d{4,}/\d{4,}-[^/\\\0]+\.png|(shards|tables|sheets)/\d{6,}\.(tar|parquet|png)"  # names that are given
LONGEST_LINE = 1 << 20  # bytes of the index
FREE = ("batch_size", "rows")  # settings that the first worker chooses, and others take over


def file_name(line: int, text: str, k: int) -> str:
    """The file of picture ``k`` of a line: the first bears the words alone, so that n may grow."""
    return f"{line // PER_FOLDER:04d}/{line:04d}-{words(text)}{f'-{k + 1}' if k else ''}.png"


class Album:
    """The pictures of a file's rows, of which several workers may each make a part.

    settings:  what all pictures depend on, and their form; JSON-able. The first worker writes them.
    overwrite: remove the pictures that do not fit, instead of refusing them.

    Raises ``ValueError`` if the folder holds pictures of other settings, or something else, and says which.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder, self.overwrite = Path(folder), overwrite
        make_folder(self.folder)
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"{self.folder} cannot be written to")
        known = self._known()
        if known is not None and (changed := _changes(known, settings)):
            if not overwrite:
                raise ValueError(
                    f"{self.folder} holds pictures drawn with {_differences(changed)}. Name another folder, "
                    "or give --overwrite to have them replaced"
                )
            self._clear()
            known = None
        if known is None:
            self._check_strangers()
            self._write_settings({"form": FORM, **settings})
        self.settings = self._known() or {}
        make_folder(self.folder / BLOCKS)
        remove_leftovers(self.folder, rf"{INDEX}|{ERRORS}|{re.escape(OPTIONS)}", seconds=60)

    def _known(self) -> dict[str, Any] | None:
        path = self.folder / OPTIONS
        if not path.exists():
            return None
        known = read_json(path, "what the pictures were drawn with")
        if known.get("form") != FORM:
            raise ValueError(
                f"{self.folder} was begun by another version of unclip, whose folders were of another form; "
                "name another folder, or go on with that version"
            )
        return known

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write them whole, unless another worker was faster; theirs are compared then."""
        aside = self.folder / f".{OPTIONS}.{os.getpid():08d}"  # as ``remove_leftovers`` knows them
        aside.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        try:
            os.link(aside, self.folder / OPTIONS)
        except FileExistsError:
            if changed := _changes(self._known() or {}, settings):
                raise ValueError(
                    f"another worker draws into {self.folder} with {_differences(changed)}"
                ) from None
        finally:
            aside.unlink()

    def _check_strangers(self) -> None:
        """Refuse a folder with pictures that could be replaced without a word."""
        for path in sorted(self.folder.rglob("*.png")):
            name = path.relative_to(self.folder).as_posix()
            if re.fullmatch(OWN, name) and not self.overwrite:
                raise ValueError(
                    f"{path} is in no index, and could be replaced. Name another folder, or give --overwrite"
                )

    def _clear(self) -> None:
        """Remove what this program has put here, and nothing else."""
        for path in [*self._indices(), *(self.folder / BLOCKS).glob("*.part")]:
            for row in self.lines_of(path):
                self._remove(row.get("file"))
        shutil.rmtree(self.folder / BLOCKS, ignore_errors=True)
        for name in (OPTIONS, INDEX, ERRORS):
            (self.folder / name).unlink(missing_ok=True)

    def _remove(self, file: str | None) -> None:
        """Remove a picture of this folder, not of one that a link leads to."""
        if file is not None and (self.folder / file).parent.resolve().is_relative_to(self.folder.resolve()):
            (self.folder / file).unlink(missing_ok=True)

    def _indices(self) -> list[Path]:
        names = sorted((self.folder / BLOCKS).glob("*.jsonl")) if (self.folder / BLOCKS).is_dir() else []
        return [path for path in names if re.fullmatch(r"\d{6,}-[0-9a-f]{16}\.jsonl", path.name)]

    def path(self, block: int, digest: str) -> Path:
        return self.folder / BLOCKS / f"{block:06d}-{digest}.jsonl"

    def complete(self, block: int, digest: str) -> bool:
        return self.path(block, digest).exists()

    def counts(self, block: int, digest: str) -> tuple[int, int]:
        """Pictures of a complete block, and rows of it that could not be drawn."""
        lines = self.path(block, digest).read_bytes()
        bad = lines.count(b'"error": ')  # in a text its quotes would have a backslash
        return lines.count(b"\n") - bad, bad

    def before(self, block: int, digest: str) -> list[dict[str, Any]]:
        """What is listed of a block as it was, when its rows were others or fewer."""
        others = [path for path in self._of(block) if path != self.path(block, digest)]
        return [row for path in others for row in self.lines_of(path)]

    def _of(self, block: int) -> list[Path]:
        return sorted((self.folder / BLOCKS).glob(f"{block:06d}-{'?' * 16}.jsonl"))

    def begun(self, block: int, digest: str) -> list[dict[str, Any]]:
        """What a worker that was stopped has listed of a block; the line that it left half is none."""
        return list(self.lines_of(self._part(block, digest)))

    def _part(self, block: int, digest: str) -> Path:
        return self.folder / BLOCKS / f"{block:06d}-{digest}.part"

    def note(self, block: int, digest: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """List pictures of a block that is not complete yet, once they are written."""
        with open(self._part(block, digest), "ab") as file:
            file.write("".join(map(line_of, rows)).encode())

    def publish(self, block: int, digest: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """List a block as complete."""
        with written_aside(self.path(block, digest)) as aside:
            aside.write_text("".join(map(line_of, rows)), encoding="utf-8")
        self._part(block, digest).unlink(missing_ok=True)
        kept = {row.get("file") for row in rows}
        for path in self._of(block):
            if path != self.path(block, digest):
                for row in self.lines_of(path):
                    if row.get("file") not in kept:
                        self._remove(row.get("file"))
                path.unlink(missing_ok=True)

    def lines_of(self, path: Path) -> Iterator[dict[str, Any]]:
        """The rows of one index; ``ValueError`` for what this program does not write."""
        with suppress(FileNotFoundError), open(path, "rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    return
                row = parse_json(line, f"line {number} of {path}", line=int)
                if row.get("file") is not None and not re.fullmatch(OWN, str(row["file"])):
                    raise ValueError(f"{path} names {row['file']!r}, which this program does not write")
                yield row

    def tidy(self, block: int, lines: Sequence[int]) -> None:
        """Remove what a killed worker left half written of a block, which nobody else works at."""
        numbers = "|".join(f"{line:04d}" for line in lines)
        places = dict.fromkeys((f"{line // PER_FOLDER:04d}" for line in lines), rf"(?:{numbers})-.*\.png")
        places[BLOCKS] = rf"{block:06d}-[0-9a-f]{{16}}\.jsonl"
        places |= dict.fromkeys(("shards", "tables", "sheets"), rf"{block:06d}\.\w+")
        for folder, names in places.items():
            if (self.folder / folder).is_dir():
                remove_leftovers(self.folder / folder, names)

    def is_whole(self, row: Mapping[str, Any], read: bool = False) -> bool:
        """Whether a row's file is there, with all its bytes; read: and the right sums, if it is a PNG."""
        file = str(row.get("file"))
        try:
            if (self.folder / file).stat().st_size != row.get("bytes", -1):
                return False
        except OSError:
            return False
        if not read or not file.endswith(".png"):
            return True
        try:
            with Image.open(self.folder / file, formats=["PNG"]) as picture:
                picture.verify()
        except Exception:  # PIL's reader raises whatever its parsing of a broken file runs into
            return False
        return True

    def gather(self) -> None:
        """Write ``index.jsonl`` and ``errors.jsonl`` of all blocks that are complete, in order."""
        for part in (self.folder / BLOCKS).glob("*.part"):
            if part.with_suffix(".jsonl").exists():  # its worker died just after it had listed it
                part.unlink(missing_ok=True)
        with written_aside(self.folder / INDEX) as index, written_aside(self.folder / ERRORS) as errors:
            with open(index, "w", encoding="utf-8") as good, open(errors, "w", encoding="utf-8") as bad:
                for path in self._indices():
                    for row in self.lines_of(path):
                        (bad if "error" in row else good).write(line_of(row))


def line_of(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _changes(known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    names = sorted(({*known, *settings}) - {"form", *FREE})
    plain = json.loads(json.dumps(dict(settings)))
    return {name: (known.get(name), plain.get(name)) for name in names if known.get(name) != plain.get(name)}


def _differences(changed: Mapping[str, tuple[object, object]]) -> str:
    def said(value: object) -> str:
        return "the model's default" if value is None else str(value)

    return "; ".join(f"{key} {said(old)}, not {said(new)}" for key, (old, new) in changed.items())
