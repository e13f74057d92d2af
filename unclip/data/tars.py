"""Tars by number: where each sample's files lie in a shard on disk, so that any of them is read alone.

Only headers are read, and nothing is ever unpacked onto the disk. What is no plain file (links, devices,
sparse files), and what has a name that leads out of a folder, is left out and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..files import impostor, regular
from .samples import LONGEST, RECORD, USED

BLOCK = 512
LARGEST = 1 << 27  # bytes; no picture is larger, nor anything else but what has a bound of its own
BOUNDS = {"txt": LONGEST, "json": RECORD}
NAMES = 1 << 20  # bytes; no name is longer
AFTER = 1 << 20  # bytes behind the end mark that are looked at; zeros fill them
TWICE = "twice in one sample; the first is used"
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's: a file's key, and its kind


class TarError(ValueError):
    """A tar that is damaged from some byte on; the message says where."""


class Readable(Protocol):
    """What can be read from front to back."""

    def read(self, length: int, /) -> bytes: ...


@dataclass(frozen=True)
class Entry:
    """A sample: its key, and where its files begin and how long they are, by kind ("jpg", "txt", ...)."""

    key: str
    files: dict[str, tuple[int, int]]


@dataclass
class Index:
    """The samples of a tar in order, and what is wrong with it as (name, reason); the name may be ""."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Member:
    """One file of a tar: name, type (one byte), where its contents begin, and how long they are."""

    name: str
    kind: bytes
    offset: int
    size: int


def index(path: str | Path) -> Index:
    """Look through an uncompressed tar's headers. What is damaged ends it, and is a problem, no error."""
    content = Index()
    with open(regular(path), "rb") as file:
        end = file.seek(0, 2)
        try:
            for member in members(file, end):
                _add(content, member)
        except TarError as error:
            content.problems.append(("", str(error)))
    return content


def members(file: BinaryIO | Forward, end: int) -> Iterator[Member]:
    """Every member of an open tar of ``end`` bytes, in order; ``TarError`` at the damage, if there is any."""
    at = 0
    name: str | None = None  # name, size: of the next file, from an extended header before it
    size: str | None = None
    while True:
        header = _read(file, at, BLOCK)
        if len(header) < BLOCK:
            if not at:
                raise _no_tar(header)
            raise TarError(f"the tar ends at byte {end:,} without its end mark: it may be cut short")
        if not header.strip(b"\0"):
            if _read(file, at, AFTER).strip(b"\0"):
                raise TarError(f"more follows its end mark at byte {at:,}; of joined tars the first is read")
            return
        length, kind = _checked(header, at), header[156:157]
        data, at = at + BLOCK, at + BLOCK + -(-length // BLOCK) * BLOCK
        if kind in b"xgLK" and length > NAMES:
            raise TarError(f"a name of {length:,} bytes at byte {data:,}")
        if kind == b"L":
            name = _text(_read(file, data, length).rstrip(b"\0"))
        elif kind == b"x":
            facts = _facts(_read(file, data, length))
            name, size = facts.get("path", name), facts.get("size", size)
        elif kind not in b"gK":
            if size is not None:  # too large for the header, or written twice
                length = _number(size, data)
                at = data + -(-length // BLOCK) * BLOCK
            if data + length > end:
                raise TarError(f"{name or _name(header)} is cut short: the tar ends at byte {end:,}")
            yield Member(name or _name(header), kind, data, length)
            name = size = None


def _read(file: BinaryIO | Forward, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _no_tar(start: bytes) -> TarError:
    return TarError((impostor(start) or "this is no tar") if start else "an empty file")


def _checked(header: bytes, at: int) -> int:
    """The length that a header states; ``TarError`` if its checksum is wrong."""
    stated = _octal(header[148:156])
    if stated != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"the tar is damaged at byte {at:,}") if at else _no_tar(header)
    length = _octal(header[124:136])
    if length is None or length < 0:
        raise TarError(f"a file of no valid size at byte {at:,}")
    return length


def _octal(field_: bytes) -> int | None:
    """A number of a header: octal digits, or (GNU) bytes after a first one of 128."""
    if field_[0] == 0x80:
        return int.from_bytes(field_[1:], "big")
    digits = field_.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return None


def _number(text: str, at: int) -> int:
    if not text.isascii() or not text.isdigit():
        raise TarError(f"a file of no valid size at byte {at:,}")
    return int(text)


def _name(header: bytes) -> str:
    name, prefix = (header[start:end].split(b"\0", 1)[0] for start, end in ((0, 100), (345, 500)))
    return _text(prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _facts(data: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" of an extended header."""
    facts, at = {}, 0
    while match := re.compile(rb"(\d{1,7}) ([^=]+)=").match(data, at):
        length = int(match[1])
        if length <= match.end() - at:
            break
        facts[_text(match[2])] = _text(data[match.end() : at + length - 1])
        at += length
    return facts


def leads_out(name: str) -> bool:
    """Whether a name would lead out of the folder that it is unpacked in."""
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name


def place_of(member: Member) -> tuple[str, str] | str | None:
    """(key, kind) of a member that belongs to a sample, None for one that does not, or why it is left out."""
    name = member.name
    if member.kind == b"5" or re.match(r"__[^/]*__($|/)", name):  # folders, webdataset's own notes
        return None
    if member.kind not in (b"0", b"\0", b"7"):
        return "a link or another thing that is no file"
    if leads_out(name):
        return "a name that leads out of its folder"
    match = KEY.match(name)
    kind = match[2].lower() if match else ""
    most = BOUNDS.get(kind, LARGEST)
    if member.size > most:
        return f"{member.size:,} bytes are more than {most:,}"
    return (match[1], kind) if match else None


def _add(content: Index, member: Member) -> None:
    """Put a member to its sample: files in a row with one key are one sample, as webdataset has it."""
    place = place_of(member)
    if isinstance(place, str):
        content.problems.append((member.name, place))
    elif place is not None:
        key, kind = place
        if not content.entries or content.entries[-1].key != key:
            content.entries.append(Entry(key, {}))
        if kind in content.entries[-1].files:
            content.problems.append((member.name, TWICE))
        else:
            content.entries[-1].files[kind] = (member.offset, member.size)


def read(path: str | Path, entry: Entry) -> dict:
    """A sample as webdataset yields it: "__key__", "__url__", and its files' bytes by kind.

    Of kinds that nothing here uses there is no more than the name.
    """
    with open(path, "rb") as file:
        return {
            "__key__": entry.key,
            "__url__": str(path),
            **{kind: _read(file, *where) if kind in USED else b"" for kind, where in entry.files.items()},
        }


class Forward:
    """A file that can only be read from front to back (a pipe, a socket), as ``members`` reads one."""

    def __init__(self, file: Readable) -> None:
        self.file, self.at = file, 0

    def seek(self, at: int) -> None:
        while self.at < at and (skipped := self.file.read(min(at - self.at, 1 << 20))):
            self.at += len(skipped)

    def read(self, length: int) -> bytes:
        parts = []
        while length > 0 and (part := self.file.read(length)):
            parts.append(part)
            length -= len(part)
            self.at += len(part)
        return b"".join(parts)


def samples(
    file: Readable, url: str, cut: list[dict[str, Any]], problems: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The samples of an open tar, from front to back, as ``read`` gives them.

    problems: what is left out is entered here, by its name, with the reason. A tar that is damaged or cut
    short raises ``TarError``, and ``file`` what it raises; ``cut`` then gets the sample that this fell into.
    """
    forward = Forward(file)
    current: dict[str, Any] | None = None
    problems = {} if problems is None else problems
    try:
        for member in members(forward, 1 << 62):
            place = place_of(member)
            if isinstance(place, str):
                problems[member.name] = place
            if not isinstance(place, tuple):
                continue
            key, kind = place
            data = _read(forward, member.offset, member.size) if kind in USED else b""
            if kind in USED and len(data) < member.size:
                raise TarError(f"{member.name} is cut short")
            if current is None or current["__key__"] != key:
                if current is not None:
                    yield current
                current = {"__key__": key, "__url__": url}
            if kind in current:
                problems[member.name] = TWICE
            current.setdefault(kind, data)
    except Exception:
        cut += [] if current is None else [current]
        raise
    if current is not None:
        yield current
