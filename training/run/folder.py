"""A run's folder: whose it is, and who is at work in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from unclip.config import Config, ConfigError, to_yaml
from unclip.files import make_folder, read_json, write_json, written_aside

from .saves import is_one
from .settings import alone

RECIPE, LOCK, OWNER = "recipe.yaml", ".lock", ".owner.json"
MARK = "# The whole recipe of the run in this folder; written anew whenever it starts.\n"
LOGS = (".log", ".out", ".err")  # what batch systems and shells write beside a run before it starts
PATIENCE = 15  # seconds for which the data workers of a run that was killed may outlive it


def check(out: str | Path) -> None:
    """Refuse a folder that holds something, but no run: ``ConfigError``. Logs and hidden files are none."""
    out = Path(out)
    if not out.is_dir() or is_run(out):
        return
    names = sorted(path.name for path in out.iterdir())
    others = [name for name in names if not name.startswith(".") and not name.endswith(LOGS)]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ConfigError(
            f"{out} holds {', '.join(others[:3])}{more}, and no run that could be continued; choose another "
            "out=, or move these away"
        )


def is_run(out: Path) -> bool:
    """Whether a folder has a recipe that a run wrote, or a save; of a CLIP, one of a phase."""
    try:
        with open(out / RECIPE, encoding="utf-8") as file:
            if file.readline() == MARK:
                return True
    except (OSError, ValueError):
        pass
    return any(is_one(folder) for pattern in ("state*", "*/state*") for folder in out.glob(pattern))


def write_recipe(out: Path, recipe: Config) -> None:
    """Write a run's recipe, marked as a run's own."""
    with written_aside(out / RECIPE) as aside:
        aside.write_text(MARK + to_yaml(recipe), encoding="utf-8")


@contextmanager
def held(out: str | Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep all other runs out of a folder in the meantime; the main process does so for all of this run.

    Raises ``ConfigError``, which names the process that holds it, if another run is at work there. A process
    that was killed holds nothing.
    """
    out = Path(out)
    lock = FileLock(out / LOCK)
    alone(accelerator, lambda: _take(lock, out))
    try:
        yield
    finally:
        if accelerator.is_main_process:
            (out / OWNER).unlink(missing_ok=True)
            lock.release()


def _take(lock: FileLock, out: Path) -> None:
    make_folder(out)
    try:
        lock.acquire(timeout=PATIENCE if _is_dead(_owner(out)) else 0)
    except Timeout:
        owner = _owner(out)
        raise ConfigError(
            f"another run is at work in {out}: process {owner.get('pid', '?')} on {owner.get('host', '?')}; "
            "wait for its end, or choose another out="
        ) from None
    except NotImplementedError:  # a disk that knows no locks
        pass
    write_json(out / OWNER, {"pid": os.getpid(), "host": socket.gethostname()})


def _owner(out: Path) -> dict:
    """Who wrote that it holds the folder; {} if nobody did."""
    try:
        return read_json(out / OWNER, "who holds a folder")
    except (OSError, ValueError):
        return {}


def _is_dead(owner: dict) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
