"""Somebody's pictures and captions, wherever they lie: folders, tables, shards. Imports no PyTorch."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unclip.data.addresses import as_file, is_address
from unclip.data.indexed import on_disk
from unclip.data.pictures import formats
from unclip.data.samples import PICTURES, texts_of
from unclip.data.tars import index

from .prepare import Item, key_of

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PICTURE_COLUMNS = ("image", "picture", "path", "file_name", "filename", "file", "image_path", "filepath",
                   "jpg", "png", "webp", "bytes")  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt", "description")
KEPT_COLUMNS = ("class", "name")  # what a record may hold that training uses
KEY_COLUMNS = ("key", "id", "__key__")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; nothing: those that are called as usual."""

    picture: str | None = None
    captions: tuple[str, ...] = ()
    root: Path | None = None  # where relative paths begin, and which no path leaves; None: beside the table


class SourceError(ValueError):
    """A source that is not there or not to be understood; the message says what is taken."""


def items_of(source: str, columns: Columns | None = None) -> tuple[Iterator[Item], int | None]:
    """Everything found in a source, in an order that depends on it alone, and how much that is (if known).

    Raises ``SourceError`` before any work when the source cannot be used.
    """
    path, columns = Path(source), columns or Columns()
    suffix = path.suffix.lower()
    if path.is_dir():
        pictures, tars = folder(path), sorted(path.glob("*.tar"))
        if tars and not any(item.picture for item in pictures):
            return shards([as_file(str(tar)) for tar in tars])
        return iter(pictures), len(pictures)
    if suffix in TABLES and path.is_file():
        return table(path, columns), None
    if ".tar" in path.name or is_address(source) or suffix == ".tgz":
        from unclip.data.reading import expand

        return shards(expand(source))
    raise SourceError(f"{source} is neither a folder, nor a table ({', '.join(TABLES)}), nor shards (.tar)")


# A folder


def folder(top: Path) -> list[Item]:
    """Pictures of a folder and those below, with captions (.txt) and records (.json) of the same names."""
    readable = {*formats(), "MPO"}
    known = {end for end, kind in Image.registered_extensions().items() if kind in readable}
    items: list[Item] = []
    for place, folders, files in os.walk(top, onerror=_refuse):
        for name in sorted(folders):
            if os.path.islink(os.path.join(place, name)):
                items.append(_unused(top, Path(place, name), "a link to a folder, which is not followed"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        items += _of_one_folder(top, Path(place), sorted(files), known)
    return items


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}")


def _of_one_folder(top: Path, place: Path, files: list[str], known: set[str]) -> Iterator[Item]:
    there, taken = set(files), set()
    for name in files:
        stem, end = os.path.splitext(name)
        if name.startswith(".") or end.lower() not in known:
            continue
        text = next((place / other for other in (f"{stem}.txt", f"{stem}.TXT") if other in there), None)
        record = place / f"{stem}.json" if f"{stem}.json" in there else {}
        taken |= {f"{stem}.txt", f"{stem}.TXT"}
        relative = (place / stem).relative_to(top).as_posix()
        yield Item(str((place / name).relative_to(top)), key_of(relative), place / name, text, record)
    for name in files:
        if name.lower().endswith(".txt") and not name.startswith(".") and name not in taken:
            yield _unused(top, place / name, "a caption without a picture")


def _unused(top: Path, path: Path, problem: str) -> Item:
    name = str(path.relative_to(top))
    return Item(name, key_of(name), problem=problem)


# Tables


def table(path: Path, columns: Columns) -> Iterator[Item]:
    """The rows of a table; ``SourceError`` at once for columns that it has not."""
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower(), _csv)
    names, rows = reader(path)
    picture = _column(path, names, columns.picture, PICTURE_COLUMNS, "--picture")
    captions = [
        _column(path, names, name, CAPTION_COLUMNS, "--caption") for name in columns.captions or (None,)
    ]
    root = (columns.root or path.parent).resolve()
    return (_row(path, number, row, picture, captions, root) for number, row in enumerate(rows, 1))


def _column(path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    found = [wanted] if wanted in names else [name for name in usual if name in names and wanted is None]
    if not found:
        missing = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(usual)}"
        raise SourceError(
            f"{path} has {missing}, but {', '.join(names) or 'none at all'}; name it with {option}"
        )
    return found[0]


def _row(path: Path, number: int, row: dict | str, picture: str, captions: list[str], root: Path) -> Item:
    name = f"{path.name}, row {number}"
    if isinstance(row, str):
        return Item(name, "_", problem=row)
    key = next((str(row[k]) for k in KEY_COLUMNS if row.get(k) not in (None, "")), f"{number - 1:09d}")
    record = {k: row[k] for k in KEPT_COLUMNS if row.get(k) not in (None, "") and k not in captions}
    if isinstance(record.get("class"), str) and record["class"].isdecimal():
        record["class"] = int(record["class"])
    texts = []
    for column in captions:
        value = row.get(column)
        texts += value if isinstance(value, list | tuple) else [value]
    texts = tuple(text for text in texts if isinstance(text, str))
    try:
        return Item(name, key_of(key), _of_cell(row.get(picture), root), texts, record)
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
    if not path.is_file():
        raise ValueError(f"there is no file {value}")
    return path


def _csv(path: Path) -> tuple[list[str], Iterator[dict | str]]:
    csv.field_size_limit(1 << 28)
    file = open(path, encoding="utf-8-sig", errors="replace", newline="")
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise SourceError(f"{path} is no table: {error}") from None
    return names, _each(reader, csv.Error, file.close)


def _each(rows: Iterator[dict], errors: type[Exception], close: Callable[[], None]) -> Iterator[dict | str]:
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
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            for line in filter(str.strip, file):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield row if isinstance(row, dict) else "a row that is no JSON object"

    names: dict[str, None] = {}
    for number, row in enumerate(rows()):
        names |= dict.fromkeys(row) if isinstance(row, dict) else {}
        if number > 100:
            break
    return list(names), rows()


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


# Shards


def shards(urls: Iterable[str]) -> tuple[Iterator[Item], int | None]:
    """The samples of shards in img2dataset's layout: those on disk by their place, others as they come."""

    def every() -> Iterator[Item]:
        for url in urls:
            if not on_disk(url):
                yield from _streamed(url)
                continue
            found = index(url)
            name = os.path.basename(url)
            for entry in found.entries:
                files = {kind: (Path(url), *where) for kind, where in entry.files.items()}
                yield _of_sample(f"{name}: {entry.key}", entry.key, files)
            for member, reason in found.problems:
                yield Item(f"{name}: {member}" if member else name, "_", problem=reason)

    return every(), None


def _streamed(url: str) -> Iterator[Item]:
    from unclip.data.reading import stream

    for sample in stream(url):
        key = sample["__key__"]
        if "__error__" in sample:
            yield Item(url, "_", problem=sample["__error__"])
        else:
            files = {kind: data for kind, data in sample.items() if isinstance(data, bytes)}
            yield _of_sample(f"{url}: {key}", key, files)


def _of_sample(name: str, key: str, files: dict[str, Any]) -> Item:
    """One sample of a shard: files are bytes, or where they lie in a tar."""
    small = {kind: _small(files[kind]) for kind in ("txt", "json") if kind in files}
    picture = next((files[kind] for kind in PICTURES if kind in files), None)
    try:
        captions, record = texts_of(small) if small else ([], {})
    except ValueError as error:
        missing = str(error) == "a sample without a caption"
        captions, record = [], _json(small) if missing else {}
        if not missing:
            return Item(name, key_of(key), problem=str(error))
    record = {k: v for k, v in record.items() if k != "captions"}
    return Item(name, key_of(key), picture, tuple(captions) if captions else None, record)


def _json(small: dict[str, bytes]) -> dict:
    return json.loads(small.get("json", b"{}"))


def _small(where: bytes | tuple[Path, int, int]) -> bytes:
    if isinstance(where, bytes):
        return where
    with open(where[0], "rb") as file:
        file.seek(where[1])
        return file.read(where[2])
