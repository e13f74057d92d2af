"""Who works at what: a file a block, held by one worker at a time, on any machine that sees the folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from pathlib import Path

from ..files import make_folder, parse_json

HEARTBEAT, EXPIRES = 5.0, 60.0  # seconds between signs of life, and after which a worker counts as dead
LONGEST = 4096  # bytes of a lease


class Leases:
    """Leases of one worker in ``folder``. A context manager: inside, a thread renews what it holds.

    A lease is a file that says whose it is; its time of change is the sign of life. Time is the file
    system's, so that clocks of machines may differ. A lease of a process that is gone from this machine is
    taken over at once, and any other when it has not been renewed for ``expires`` seconds.
    """

    def __init__(self, folder: str | Path, expires: float = EXPIRES) -> None:
        self.folder, self.expires = Path(folder), expires
        make_folder(self.folder)
        self.token = uuid.uuid4().hex
        self.held: Path | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.release()
        self.tidy()

    def _now(self) -> float:
        """The time of the file system."""
        clock = self.folder / f".{self.token}"
        clock.touch()
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink()

    def claim(self, block: int) -> bool:
        """Try to become the one who works at a block; held until ``release``, one at a time."""
        path = self.folder / f"{block:06d}"
        if not self._create(path) and not (self._bury(path) and self._create(path)):
            return False
        self.held = path
        return True

    def release(self) -> None:
        if self.held is not None and self.mine():
            with contextlib.suppress(OSError):
                self.held.unlink()
        self.held = None

    def tidy(self) -> None:
        """Take away what the dead left: leases of blocks that they had finished, and their signs of life."""
        for path in self.folder.glob("[0-9]*"):
            self._bury(path)
        now = self._now()
        for path in self.folder.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > self.expires:
                    path.unlink()

    def mine(self) -> bool:
        """Whether the lease that was claimed is still this worker's: one that slept too long has lost it."""
        return self.held is not None and self._owner(self.held).get("token") == self.token

    def _create(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}, file)
        return True

    def _bury(self, path: Path) -> bool:
        """Take a dead worker's lease away; False if it lives, or somebody else was faster."""
        if not self._dead(path):
            return False
        grave = path.with_name(f".{path.name}.{self.token}")
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return True
        dead = self._dead(grave)
        if not dead:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(grave, path)  # it was taken over in between, and is put back
        grave.unlink(missing_ok=True)
        return dead

    def _dead(self, path: Path) -> bool:
        try:
            changed = path.stat().st_mtime
        except FileNotFoundError:
            return False
        owner = self._owner(path)
        if owner.get("host") == socket.gethostname() and not _alive(owner.get("pid")):
            return True
        return self._now() - changed > self.expires

    def _owner(self, path: Path) -> dict:
        try:
            with open(path, "rb") as file:
                return parse_json(file.read(LONGEST), "a lease", token=str, host=str, pid=int)
        except (OSError, ValueError):  # not yet written, or gone
            return {}

    def _renew(self) -> None:
        while not self._ended.wait(min(HEARTBEAT, self.expires / 4)):
            held = self.held
            if held is not None and self.mine():
                with contextlib.suppress(OSError):
                    os.utime(held)


def _alive(pid: object) -> bool:
    """Whether there is such a process here."""
    if not isinstance(pid, int) or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
