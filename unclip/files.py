"""Files that are written whole or not at all, and read only if they are files, of a size that can be."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Inside, an ``OSError`` that names no file, such as a full disk's, gets this one's name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as libraries in Rust say it, safetensors one
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; flush it to disk and rename it when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        with named(path):
            yield aside
        os.chmod(aside, 0o644)  # mkstemp makes private files
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path, names: str, seconds: float = 0.0) -> None:
    """Remove what killed processes left half written in a folder: temporary files of our own naming.

    names:   a regular expression of the files that they were to become.
    seconds: how long nobody may have written to them.
    """
    for path in Path(folder).iterdir():
        if re.fullmatch(rf"\.(?:{names})\.\w{{8}}(?:\.partial)?", path.name):
            with suppress(FileNotFoundError):
                if path.is_file() and time.time() - path.stat().st_mtime >= seconds:
                    path.unlink()


def remove_own(folder: str | Path, names: str) -> None:
    """Remove a folder that a program of ours left half done; ``ValueError`` if it holds anything else.

    names: a regular expression of the files and folders that the program puts there.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    inside = [folder] if folder.is_symlink() or not folder.is_dir() else folder.iterdir()
    if strangers := [path for path in inside if path == folder or not re.fullmatch(names, path.name)]:
        raise ValueError(f"{strangers[0]} is in the way, and was not put there by this program: move it away")
    shutil.rmtree(folder)


@contextmanager
def sole(folder: str | Path, doing: str) -> Iterator[None]:
    """Inside, this process is the only one here; ``ValueError`` if another one is.

    doing: what it does, for the message: "draws into". The lock lies on the folder itself: it leaves no file,
    and ends with the process. Where there are no such locks, there is none.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process {doing} {folder}; wait for its end, or name another folder"
                ) from None
        yield
    finally:
        os.close(handle)


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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """What is kept between runs, such as public files: $UNCLIP_CACHE, or .cache/unclip at home."""
    folder = os.environ.get("UNCLIP_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "unclip"


def write_json(path: str | Path, values: object) -> None:
    """Write ``values`` as JSON, all or nothing."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def regular(path: str | Path) -> Path:
    """The path of a regular file, or of a link to one. ``ValueError`` for what is missing, and for what may
    never end or answer: a FIFO, a device, a socket; or a folder."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # such as a link to itself, or a name with a zero byte
        raise ValueError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISREG(mode):
        return Path(path)
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device"}
    raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a file")


def impostor(start: bytes) -> str | None:
    """What stands in the place of a file that should have been fetched, in words, by its first bytes."""
    if start.startswith(b"version https://git-lfs.github.com/"):
        return "it is a pointer of Git LFS, not the file that it stands for: fetch that with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a page of the web, such as one that asks to log in: download the file itself"
    return None


def start_of(path: str | Path) -> bytes:
    """A regular file's first bytes, enough for ``impostor``; ``ValueError`` for what is no such file."""
    with open(regular(path), "rb") as file:
        return file.read(512)


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, unless it is there; ``ValueError`` if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # such as a file in its place, or a name with a zero byte
        reason = getattr(error, "strerror", error)
        raise ValueError(f"{str(path)!r} cannot be made a folder: {reason}") from None


def read_whole(path: str | Path, most: int) -> bytes:
    """A regular file's bytes; ``ValueError`` if there are more than ``most``, of which no more is read."""
    with open(regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most:,} bytes, the most that is read of such a file")
    return content


JSON_BYTES = 64 << 20  # the largest file of JSON that is read


def read_json(path: str | Path, what: str, most: int = JSON_BYTES, **kinds: type | tuple[type, ...]) -> dict:
    """The JSON object of a file, as ``parse_json`` has it.

    what: what the file is, for the message: "the list of a save's files".

    Raises ``ValueError`` that names the file and the reason: missing, no regular file, larger than ``most``
    bytes, no JSON object, or one that lacks a key.
    """
    return parse_json(read_whole(path, most), f"{path}, {what},", **kinds)


def parse_json(text: bytes | str, source: str, **kinds: type | tuple[type, ...]) -> dict:
    """A JSON object, in UTF-8 if it is bytes.

    kinds: keys that it must have, and the type of each: ``files=dict``; a bool is no int.

    Raises ``ValueError``, "``source`` is damaged: " and why, whatever the text is.
    """
    try:
        values = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{source} is damaged: its brackets are nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is damaged: it is not UTF-8 text ({error.reason})") from None
    except ValueError as error:
        start = text[:512].encode(errors="replace") if isinstance(text, str) else text[:512]
        reason = impostor(start) or f"it is no JSON ({error})"
        raise ValueError(f"{source} is damaged: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source} is damaged: it holds no JSON object, but a {type(values).__name__}")
    for key, kind in kinds.items():
        wanted = kind if isinstance(kind, tuple) else (kind,)
        value = values.get(key)
        if not isinstance(value, wanted) or isinstance(value, bool) and bool not in wanted:
            names = " or ".join(one.__name__ for one in wanted)
            raise ValueError(f"{source} is damaged: its {key!r} must be a {names}, not {value!r:.40}")
    return values


def words(text: str, longest: int = 80) -> str:
    """ "A goldfish!" -> "a-goldfish", at most ``longest`` bytes: the words of a file's name."""
    joined = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")
    return joined.encode(errors="ignore")[:longest].decode(errors="ignore").strip("-_") or "picture"
