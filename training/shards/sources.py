"""Somebody's pictures and captions, wherever they lie: folders, tables, shards. Imports no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from unclip.config import looked_up
from unclip.data.addresses import as_file, is_address
from unclip.data.formats import readable, unread
from unclip.data.indexed import on_disk
from unclip.data.samples import OTHERS, PICTURES
from unclip.data.tars import index
from unclip.files import regular

from .prepare import Item, Place, key_of
from .tables import TABLES, Columns, SourceError, table


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
    if suffix in TABLES and path.exists():
        return table(regular(path), columns), None
    if ".tar" in path.name or is_address(source) or suffix == ".tgz":
        from unclip.data.reading import expand

        return shards(expand(source))
    raise SourceError(
        f"{source} is neither a folder, nor a table ({', '.join(TABLES)}), nor shards (.tar)"
        f"{looked_up(source)}"
    )


# A folder


def folder(top: Path) -> list[Item]:
    """Pictures of a folder and those below, with captions (.txt) and records (.json) of the same names; and
    what cannot be used.
    """
    known = readable()
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
    """The samples of a folder's pictures; then by name what is no picture that is read, or has none."""
    files = [name for name in files if not name.startswith(".")]
    texts = {os.path.splitext(name)[0]: name for name in files if name.lower().endswith(".txt")}
    records = {name[:-5]: name for name in files if name.endswith(".json")}
    alone = dict.fromkeys(texts.values(), "a caption") | dict.fromkeys(records.values(), "a record")
    others = [name for name in files if name not in alone]
    for name in others:
        stem, end = os.path.splitext(name)
        reason = unread(name)
        if end.lower() in known:
            text, record = (place / one[stem] if stem in one else None for one in (texts, records))
            relative = (place / stem).relative_to(top).as_posix()
            shown = str((place / name).relative_to(top))
            yield Item(shown, key_of(relative), place / name, text, record or {})
        elif reason or stem in texts:
            yield _unused(
                top, place / name, reason or f"{end or 'no ending'} is no kind of picture that is read"
            )
        else:
            continue
        for one in (texts, records):
            alone.pop(one.get(stem), None)
    for name, kind in sorted(alone.items()):
        yield _unused(top, place / name, f"{kind} without a picture")


def _unused(top: Path, path: Path, problem: str) -> Item:
    name = str(path.relative_to(top))
    return Item(name, key_of(name), problem=problem)


# Shards


def shards(urls: Iterable[str]) -> tuple[Iterator[Item], int | None]:
    """The samples of shards in img2dataset's layout: those on disk by their place, others as they come."""

    def every() -> Iterator[Item]:
        for url in urls:
            if not on_disk(url):
                yield from _streamed(url)
                continue
            content = index(url)
            name = os.path.basename(url)
            for entry in content.entries:
                files = {kind: (Path(url), *where) for kind, where in entry.files.items()}
                yield _of_sample(f"{name}: {entry.key}", entry.key, files)
            for member, reason in content.problems:
                yield Item(f"{name}: {member}" if member else name, "_", problem=reason)

    return every(), None


def _streamed(url: str) -> Iterator[Item]:
    from unclip.data.reading import stream

    problems: dict[str, str] = {}
    for sample in stream(url, problems=problems):
        key = sample["__key__"]
        if "__error__" in sample:
            yield Item(url, "_", problem=sample["__error__"])
        else:
            files = {kind: data for kind, data in sample.items() if isinstance(data, bytes)}
            yield _of_sample(f"{url}: {key}", key, files)
    for member, reason in problems.items():
        yield Item(f"{url}: {member}", "_", problem=reason)


def _of_sample(name: str, key: str, files: dict[str, Place]) -> Item:
    """One sample of a shard: files are bytes, or where they lie in a tar."""
    picture = next((files[kind] for kind in (*PICTURES, *OTHERS) if kind in files), None)
    problem = None
    if picture is None:
        reasons = [reason for kind in files if (reason := unread(f"a.{kind}"))]
        problem = reasons[0] if reasons else f"a sample without a picture, only {', '.join(files)}"
    return Item(name, key_of(key), picture, files.get("txt"), files.get("json", {}), problem=problem)
