"""Public files from where they are published: resumed, checked, and put in place whole.

OpenAI's come from its addresses into a folder of ours; Karlo's and Kandinsky's from the Hugging Face hub into
the hub's own cache, by ``huggingface_hub``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint import CheckpointError
from ..files import cache_folder, sha256_of, written_aside
from .catalogue import PublicFile, PublicModel

TRIES = 3  # attempts in a row that bring nothing
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 16  # bytes; of a cut connection, less than that is lost


class _CutError(Exception):
    """The connection ended too early; what came is kept."""


def place_of(model: PublicModel, file: PublicFile) -> Path:
    """Where a file of a model is kept, or can be put by hand."""
    return cache_folder() / model.family / file.name


def fetch_model(model: PublicModel, beside: Path | None = None) -> dict[str, Path]:
    """All files of a model by role, downloaded if they are not there.

    beside: a folder of the user's, that is looked into first.

    Raises ``CheckpointError``, which lists every missing file, its address and its place, for what
    cannot be had.
    """
    here, missing = local_files(model, beside)
    if missing:
        notice(model)
    for role, file in missing.items():
        try:
            here[role] = fetch(file, place_of(model, file))
        except CheckpointError as error:
            rest = {role: missing[role] for role in missing if role not in here}
            raise CheckpointError(f"{error}\n{_by_hand(model, rest)}") from None
    return here


def local_files(
    model: PublicModel, beside: Path | None = None
) -> tuple[dict[str, Path], dict[str, PublicFile]]:
    """The files of a model that are here, and those that are not, by role."""
    here = {}
    for role, file in model.files.items():
        places = [place_of(model, file)] + ([] if beside is None else [beside / file.name])
        path = next((path for path in reversed(places) if path.is_file()), None)
        if path is not None:
            _check_length(path, file.size)
            here[role] = path
    return here, {role: file for role, file in model.files.items() if role not in here}


def _by_hand(model: PublicModel, missing: Mapping[str, PublicFile]) -> str:
    lines = [f"  {file.address}\n    -> {place_of(model, file)}" for file in missing.values()]
    return (
        f"{model.name} needs {len(lines)} more file{'s' * (len(lines) > 1)}; with a network, run the "
        "same command again, or put them there by hand:\n" + "\n".join(lines)
    )


def fetch(file: PublicFile, path: Path) -> Path:
    """Download ``file`` to ``path``, going on where an earlier attempt ended; returns ``path``.

    It appears there only when its length is the server's and its sha256, where one is known, is right.
    Raises ``CheckpointError`` for a file that cannot be had, or is another than it should be.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # else another process was faster
            _download(file, path)
    return path


def _download(file: PublicFile, path: Path) -> None:
    import requests

    try:
        size, version = _described(file)
        _check_room(path, size)
        part = path.with_name(f".{path.name}.{version}.part")  # another version begins anew
        _complete(file, part, size)
        if size is not None:
            _check_length(part, size, remove=True)
        _check_hash(part, file)
    except requests.RequestException as error:
        raise CheckpointError(f"{file.address} cannot be reached: {_reason(error)}") from None
    with open(part, "rb+") as done:
        os.fsync(done.fileno())
    os.replace(part, path)
    for old in path.parent.glob(f".{path.name}.*.part"):
        old.unlink(missing_ok=True)


def _complete(file: PublicFile, part: Path, size: int | None) -> None:
    """Download until ``part`` is whole; give up when the connection is cut again and again for nothing."""
    vain = 0
    while vain < TRIES:
        before = part.stat().st_size if part.is_file() else 0
        try:
            return _continue(file, part, size)
        except _CutError as error:
            vain = vain + 1 if part.is_file() and part.stat().st_size <= before else 0
            cut = error
    raise CheckpointError(
        f"{file.address} was cut short again and again ({cut}); what came is kept, "
        "and the same command goes on from there"
    )


def _described(file: PublicFile) -> tuple[int | None, str]:
    """Length in bytes, and a name for this version of the file's content."""
    import requests

    answer = requests.head(
        file.address, timeout=TIMEOUT, allow_redirects=True, headers={"Accept-Encoding": "identity"}
    )
    answer.raise_for_status()
    length = answer.headers.get("Content-Length")
    size = int(length) if length else file.size
    if None not in (size, file.size) and size != file.size:
        raise CheckpointError(
            f"{file.address} is of {size} bytes there, but the published file is of "
            f"{file.size}: it is another file"
        )
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return size, hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:8]


def _continue(file: PublicFile, part: Path, size: int | None) -> None:
    """Append to ``part`` what is missing of the file; ``_CutError`` if that ends too early."""
    import requests
    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() and size is not None else 0
    if have and have == size:
        return
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(file.address, stream=True, timeout=TIMEOUT, headers=headers) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            raise _CutError(f"{part} was longer than the file")
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0  # the server sends it from its beginning
        with (
            open(part, "ab" if have else "wb") as out,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=file.name, disable=None) as bar,
        ):
            try:
                for piece in answer.iter_content(PIECE):
                    out.write(piece)
                    bar.update(len(piece))
            except requests.RequestException as error:
                raise _CutError(_reason(error)) from None
    if size is not None and part.stat().st_size < size:
        raise _CutError(f"{part.stat().st_size} of {size} bytes came")


def _reason(error: Exception) -> str:
    """One line of what requests says."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout"):
        return "there is no connection"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _check_room(path: Path, size: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if size is not None and free < size:
        raise CheckpointError(
            f"{path} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; "
            "UNCLIP_CACHE names another folder"
        )


def _check_length(path: Path, size: int | None, remove: bool = False) -> None:
    actual = path.stat().st_size
    if size is None or actual == size:
        return
    if remove:
        path.unlink()
    raise CheckpointError(
        f"{path} is of {actual} bytes and should be of {size}: it is cut short or another "
        "file; remove it, and it is fetched again"
    )


def _check_hash(part: Path, file: PublicFile) -> None:
    if file.sha256 is None:
        return
    actual = sha256_of(part)
    if actual != file.sha256:
        part.unlink()
        raise CheckpointError(
            f"what came from {file.address} is damaged or another file: its sha256 is "
            f"{actual}, not {file.sha256}; it was removed"
        )


def fetch_snapshot(model: PublicModel, role: str = "") -> Path:
    """A model's folder from the Hugging Face hub, in the hub's cache, or put into ours by hand.

    role: of a model of several repositories, which.

    What is there is not fetched again. Raises ``CheckpointError`` for what cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    hub = model.hub if isinstance(model.hub, str) else (model.hub or {}).get(role)
    if hub is None:
        raise CheckpointError(f"{model.name} is in no repository of the Hugging Face hub")
    notice(model)
    by_hand = cache_folder() / model.name / role
    if (by_hand / model.patterns[0]).is_file():
        return by_hand
    try:
        return Path(snapshot_download(hub, revision=model.revision, allow_patterns=[*model.patterns]))
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{model.name} cannot be fetched ({lines[0][:200]}). With a network, run the same command again: "
            f"it goes on where it ended, in {constants.HF_HUB_CACHE}; or put these files there by hand:\n"
            f"  {', '.join(model.patterns)} of https://huggingface.co/{hub}/tree/{model.revision or 'main'}\n"
            f"    -> {by_hand}"
        ) from None


def notice(model: PublicModel) -> None:
    """Say once under what licence a model is published; a small file in the cache remembers it."""
    marker = cache_folder() / "shown" / model.licence.name.replace(" ", "-") / model.name
    if marker.exists():
        return
    warnings.warn(licence_line(model), stacklevel=2)
    try:
        with written_aside(marker) as aside:
            aside.write_text(licence_line(model) + "\n", encoding="utf-8")
    except OSError:  # a cache that cannot be written to: it is said again
        pass


def licence_line(model: PublicModel) -> str:
    licence = model.licence
    return (
        f"{model.name} is published under {licence.name} ({licence.address}). {licence.note} "
        f"Model card: {licence.card}"
    )
