"""Tables of pictures and captions: .csv, .tsv, .jsonl, .parquet. Imports no PyTorch."""

from __future__ import annotations

import base64
import binascii
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from unclip.data.formats import readable, unread
from unclip.data.samples import why_not
from unclip.files import impostor, parse_json, regular, start_of

from .prepare import Item, key_of

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PICTURE_COLUMNS = ("image", "picture", "path", "file_name", "filename", "file", "image_path", "filepath",
                   "jpg", "png", "webp", "bytes")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt", "description")
KEPT_COLUMNS = ("class", "name")  # what a record may hold that training uses
TOO_MANY = "a row of more cells than the table has columns; quote what has commas"
CELL = 1 << 26  # letters of a table's cell, or of a row of JSON; a picture may stand there, as base64
TOO_LONG = f"a row of more than {CELL:,} letters"
KEY_COLUMNS = ("key", "id", "__key__")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; nothing: those that are called as usual."""

    picture: str | None = None
    captions: tuple[str, ...] = ()
    root: Path | None = None  # where relative paths begin, and which no path leaves; None: beside the table


class SourceError(ValueError):
    """A source that is not there or not to be understood; the message says what is taken."""


def table(path: Path, columns: Columns) -> Iterator[Item]:
    """The rows of a table; ``SourceError`` at once for columns that it has not."""
    if reason := impostor(start_of(path)):
        raise SourceError(f"{path} is no table: {reason}")
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower(), _csv)
    names, rows = reader(path)
    picture = _column(path, names, columns.picture, PICTURE_COLUMNS, "--picture")
    captions = [
        _column(path, names, name, CAPTION_COLUMNS, "--caption") for name in columns.captions or (None,)
    ]
    root = (columns.root or path.parent).resolve()
    return (_row(path, number, row, picture, captions, root) for number, row in enumerate(rows, 1))


def _column(path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    matching = [wanted] if wanted in names else [name for name in usual if name in names and wanted is None]
    if not matching:
        missing = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(usual)}"
        raise SourceError(
            f"{path} has {missing}, but {', '.join(names) or 'none at all'}; name it with {option}"
        )
    return matching[0]


def _row(path: Path, number: int, row: dict | str, picture: str, captions: list[str], root: Path) -> Item:
    name = f"{path.name}, row {number}"
    if isinstance(row, str):
        return Item(name, "_", problem=row)
    key = next((str(row[k]) for k in KEY_COLUMNS if row.get(k) not in (None, "")), f"{number - 1:09d}")
    record = {k: row[k] for k in KEPT_COLUMNS if row.get(k) not in (None, "") and k not in captions}
    if isinstance(record.get("class"), str) and record["class"].isdecimal():
        record["class"] = int(record["class"])
    if None in row:  # where csv puts what is left over
        return Item(name, key_of(key), problem=TOO_MANY)
    if any(isinstance(value, str) and why_not(value) for value in record.values()):
        return Item(name, key_of(key), problem="a name that is no UTF-8 text")
    cells: list[object] = []
    for column in captions:
        value = row.get(column)
        cells += value if isinstance(value, list | tuple) else [] if value is None else [value]
    try:
        return Item(name, key_of(key), _of_cell(row.get(picture), root), None, record, tuple(cells))
    except ValueError as error:
        return Item(name, key_of(key), problem=str(error))


def _of_cell(value: Any, root: Path) -> bytes | Path:
    """The picture of a cell: bytes, {"bytes", "path"} as Hugging Face has it, base64, or a path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise ValueError("a row without a picture")
    if value.startswith("data:") or len(value) > 4096:
        try:
            return base64.b64decode(value.rpartition(",")[2], validate=True)
        except binascii.Error:
            raise ValueError("a picture that is neither a path nor base64") from None
    if "\0" in value:
        raise ValueError("a path that is none")
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        raise ValueError(f"{value} leads out of its folder; name the one that holds all with --root")
    if not path.exists():
        raise ValueError(f"there is no file {value}")
    if path.suffix.lower() not in readable() and (reason := unread(value)):
        raise ValueError(f"{value}: {reason}")
    return regular(path)


def _csv(path: Path) -> tuple[list[str], Iterator[dict | str]]:
    csv.field_size_limit(CELL)
    file = _open_text(path)
    reader = csv.DictReader(_Lines(file), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        file.close()
        raise SourceError(f"{path} is no table: {error}") from None
    return names, _each(reader, (csv.Error, LongRow), file.close)


def _open_text(path: Path) -> TextIO:
    """A table to be read; bytes that are no UTF-8 stay apart from all letters, and so can be named."""
    file = open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")
    if file.buffer.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file.close()
        raise SourceError(f"{path} is UTF-16; save it as UTF-8")
    return file


def _each(
    rows: Iterator[dict], errors: tuple[type[Exception], ...], close: Callable[[], None]
) -> Iterator[dict | str]:
    """The rows; one that cannot be read is its reason."""
    try:
        while True:
            try:
                yield next(rows)
            except StopIteration:
                return
            except errors as error:
                yield f"a row that cannot be read: {error}"
    finally:
        close()


def _jsonl(path: Path) -> tuple[list[str], Iterator[dict | str]]:
    def rows() -> Iterator[dict | str]:
        with _open_text(path) as file:
            lines = _Lines(file)
            while True:
                try:
                    line = next(lines)
                    if line.strip():
                        yield parse_json(line, "the row")
                except StopIteration:
                    return
                except LongRow as error:
                    yield str(error)
                except ValueError as error:
                    yield f"a row that is no JSON object: {error}"

    names: dict[str, None] = {}
    for row in islice(rows(), 100):
        names |= dict.fromkeys(row) if isinstance(row, dict) else {}
    return list(names), rows()


class LongRow(ValueError):
    """A line of a table that is longer than any row."""


class _Lines:
    """A file's lines; ``LongRow`` in place of one that is too long, which is read past and not held."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(CELL + 1)
        if not line:
            raise StopIteration
        if len(line) > CELL:
            while line and not line.endswith("\n"):
                line = self.file.readline(CELL + 1)
            raise LongRow(TOO_LONG)
        return line


def _parquet(path: Path) -> tuple[list[str], Iterator[dict]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SourceError('Parquet needs pyarrow; install it with: pip install "unclip[parquet]"') from None
    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise SourceError(f"{path} is no Parquet: {error}") from None

    def rows() -> Iterator[dict | str]:
        try:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            yield f"the table is damaged from here on: {error}"

    return list(file.schema_arrow.names), rows()
