"""Files of prompts, read a row at a time in constant memory: text, CSV, TSV, JSONL, Parquet, and gzip."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ..files import impostor, parse_json, regular

Format = Literal["txt", "csv", "tsv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("txt", "csv", "tsv", "jsonl", "parquet")
SUFFIXES: dict[str, Format] = {
    ".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
LONGEST_LINE = 1 << 20  # bytes of a line; of a longer one nothing is used
TOGETHER = 1024  # rows of a Parquet file that are held at once


class Unusable(ValueError):
    """Why one row cannot be used."""


@dataclass(frozen=True)
class Row:
    """A row of a file: its line, from 1 on (of Parquet: its number), and its values, or why it has none."""

    line: int
    values: Mapping[str, Any] | Unusable


@dataclass
class Source:
    """A file of prompts, or standard input (``-``), which can be read once.

    format: None = by the file's name; of standard input, text.

    Raises ``ValueError`` for what is no regular file, is something else than its name says, or of no format.
    """

    path: Path
    format: Format | None = None
    columns: Sequence[str] | None = None  # that a table may have; None = any
    ignored: Sequence[str] = ()  # columns that are passed over

    def __post_init__(self) -> None:
        self.read = 0  # bytes of the file that have been read
        if self.once:
            self.format = self.format or "txt"
            return
        with open(regular(self.path), "rb") as file:
            start = file.read(512)
        if reason := impostor(start):
            raise ValueError(f"{self.path} holds no prompts: {reason}")
        suffixes = [one.lower() for one in self.path.suffixes if one.lower() != ".gz"]
        self.format = self.format or SUFFIXES.get(suffixes[-1] if suffixes else "")
        if self.format is None:
            raise ValueError(
                f"{self.path}: its name ends in none of {', '.join(SUFFIXES)}; say which by --format"
            )

    @property
    def once(self) -> bool:
        """Whether it can be read but once."""
        return str(self.path) == "-"

    @property
    def folder(self) -> Path:
        """Where the files that rows name are looked for."""
        return Path(".") if self.once else self.path.parent

    @property
    def share(self) -> float | None:
        """How much of the file has been read, 0 to 1; None = nobody knows."""
        size = 0 if self.once else self.path.stat().st_size
        return min(1.0, self.read / size) if size else None

    def __iter__(self) -> Iterator[Row]:
        self.read = 0
        if self.format == "parquet":
            yield from self._parquet()
            return
        with open(self.path, "rb") if not self.once else _stdin() as file:
            lines = self._lines(file)
            if self.format == "txt":
                yield from _texts(lines)
            elif self.format == "jsonl":
                yield from _objects(lines)
            else:
                yield from self._table(lines, "\t" if self.format == "tsv" else ",")

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, str | Unusable]]:
        """Lines with their numbers, without their ends."""
        watched = _Counted(file, self)
        start = watched.peek(2)
        stream: io.BufferedIOBase = watched
        if start[:2] == b"\x1f\x8b":
            stream = gzip.GzipFile(fileobj=watched)
        for number in itertools.count(1):
            try:
                line = stream.readline(LONGEST_LINE + 1)
                long = len(line) > LONGEST_LINE
                while long and not line.endswith(b"\n") and (more := stream.readline(LONGEST_LINE)):
                    line = more
            except (EOFError, OSError, zlib.error) as error:
                yield number, Unusable(f"the file is damaged from here on: {error}")
                return
            if not line:
                return
            if long:
                yield number, Unusable(f"the line is longer than {LONGEST_LINE:,} bytes")
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Unusable(f"the line is not UTF-8 text: {error.reason} at byte {error.start + 1}"),
                )
                continue
            yield number, text

    def _table(self, lines: Iterator[tuple[int, str | Unusable]], delimiter: str) -> Iterator[Row]:
        """Rows of CSV or TSV; a field in quotes may go on in the next line."""
        fed = _Fed(lines)
        reader = csv.reader(fed, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if not names:
            raise ValueError(f"{self.path} is empty; its first line names the columns, such as prompt,seed")
        self._check(names)
        while True:
            fed.first = 0
            try:
                fields = next(reader)
            except StopIteration:
                return
            except Unusable as error:
                yield Row(fed.first, error)
                continue
            except csv.Error as error:
                yield Row(fed.first, Unusable(f"the row is no {self.format}: {error}"))
                continue
            if fields and len(fields) != len(names):
                reason = f"the row has {len(fields)} fields, and there are {len(names)} columns"
                yield Row(fed.first, Unusable(reason))
            elif any(field.strip() for field in fields):
                values = {name: field for name, field in zip(names, fields, strict=True) if field.strip()}
                yield Row(fed.first, {name: values[name] for name in values if name not in self.ignored})

    def _parquet(self) -> Iterator[Row]:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise ValueError('Parquet is read with pyarrow: pip install "unclip[parquet]"') from None
        if self.once:
            raise ValueError("Parquet is read from a file, not from standard input")
        try:
            with ParquetFile(self.path) as file:
                self._check(file.schema_arrow.names)
                names = [name for name in file.schema_arrow.names if name not in self.ignored]
                rows, size = max(1, file.metadata.num_rows), self.path.stat().st_size
                number = 0
                for batch in file.iter_batches(TOGETHER, columns=names):
                    for values in batch.to_pylist():
                        number += 1
                        self.read = size * number // rows
                        yield Row(
                            number, {name: value for name, value in values.items() if value is not None}
                        )
        except ArrowException as error:
            raise ValueError(
                f"{self.path} is damaged: {next(iter(str(error).splitlines()), error)}"
            ) from None

    def _check(self, names: Sequence[str]) -> None:
        """Refuse a table with a column that is none, or the same one twice."""
        known = None if self.columns is None else {*self.columns, *self.ignored}
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"{self.path} has the column {twice[0]!r:.80} twice")
        if known is not None and (unknown := [name for name in names if name not in known]):
            raise ValueError(
                f"{self.path} has the column {unknown[0]!r:.80}, which means nothing here; known are "
                f"{', '.join(sorted(known))}. To pass over it: --ignore {unknown[0]:.80}"
            )


class _Fed:
    """Lines as ``csv`` takes them, which remembers where a row began; a line that is none is raised."""

    def __init__(self, lines: Iterator[tuple[int, str | Unusable]]) -> None:
        self.lines, self.first = lines, 0

    def __iter__(self) -> _Fed:
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        self.first = self.first or number
        if isinstance(line, Unusable):
            raise line
        return line + "\n"


class _Counted(io.BufferedReader):
    """A file whose bytes are counted as they are read."""

    def __init__(self, file: IO[bytes], source: Source) -> None:
        super().__init__(_Raw(file, source), 1 << 16)


class _Raw(io.RawIOBase):
    def __init__(self, file: IO[bytes], source: Source) -> None:
        self.file, self.source = file, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.source.read += len(data)
        return len(data)


def _stdin() -> IO[bytes]:
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _texts(lines: Iterable[tuple[int, str | Unusable]]) -> Iterator[Row]:
    """A prompt a line; those that begin with # are none."""
    for number, line in lines:
        if isinstance(line, Unusable):
            yield Row(number, line)
        elif line.strip() and not line.strip().startswith("#"):
            yield Row(number, {"prompt": line.strip()})


def _objects(lines: Iterable[tuple[int, str | Unusable]]) -> Iterator[Row]:
    """A JSON object a line: fields by name, or a request of OpenAI's batches (custom_id, body)."""
    for number, line in lines:
        if isinstance(line, Unusable):
            yield Row(number, line)
            continue
        if not line.strip():
            continue
        try:
            yield Row(number, parse_json(line, "the line"))
        except ValueError as error:
            yield Row(number, Unusable(str(error)))


def read_prompts(path: str | Path) -> list[str]:
    """All prompts of a text file; ``ValueError`` for a line that cannot be used, and for none at all."""
    prompts: list[str] = []
    for row in Source(Path(path), "txt"):
        if isinstance(row.values, Unusable):
            raise ValueError(f"{path}: line {row.line}: {row.values}")
        prompts.append(row.values["prompt"])
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line, for example: a goldfish")
    return prompts
