"""Fetching: pinned npm packages, by the npm client, unpacked in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class FetchError(RuntimeError):
    """A package that could not be fetched; the message says which, why and what to do."""


@dataclass(frozen=True)
class Package:
    """An npm package at one version, and the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def family(self) -> str:
        """The name without its scope: "@iconify-json/noto-v1" -> "noto-v1"."""
        return self.name.rpartition("/")[2]


def _icons(family: str, version: str, sha256: str) -> Package:
    return Package(f"@iconify-json/{family}", version, sha256)


FAMILIES = (
    _icons("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    _icons("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    _icons("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    _icons("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    _icons("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    _icons("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
)
KEYWORDS = (
    Package("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"),
    Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
)


def default_cache() -> Path:
    """Where packages are kept: ``$XDG_CACHE_HOME/unclip/npm`` or ``~/.cache/unclip/npm``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "unclip" / "npm"


def fetch(package: Package, cache: Path) -> Path:
    """Return the folder of the unpacked package, which is fetched once with ``npm pack``.

    Raises ``FetchError`` when npm is missing or fails, when the archive is not the pinned one, or
    when the cache cannot be written.
    """
    folder = cache / f"{package.family}-{package.version}-{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
            archive = _npm_pack(package, Path(scratch))
            _unpack(package, archive, Path(scratch) / "package")
            os.replace(Path(scratch) / "package", folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise FetchError(f"cannot keep {package.name} in {cache}: {error}") from error
    return folder


def _npm_pack(package: Package, scratch: Path) -> Path:
    """Download the archive into ``scratch`` and check it against its pinned digest."""
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not on the PATH; it comes with Node.js (https://nodejs.org)")
    wanted = f"{package.name}@{package.version}"
    command = [npm, "pack", wanted, "--silent", "--pack-destination", str(scratch)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
    archives = sorted(scratch.glob("*.tgz"))
    if result.returncode or not archives:
        reason = (result.stderr or result.stdout).strip() or f"npm exited with {result.returncode}"
        raise FetchError(f"npm pack {wanted} failed: {reason}")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise FetchError(f"{wanted} has SHA-256 {digest}, expected {package.sha256}")
    return archives[0]


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Unpack npm's archive, whose files all lie in one folder called ``package``: them, and nothing else.

    Python before 3.11.4 has no ``extractall(filter=)``, and Debian 12 comes with 3.11.2.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if not member.isfile() or parts[:1] != (folder.name,) or ".." in parts:
                    continue
                place = folder.parent.joinpath(*parts)
                place.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(place, "wb") as file:
                    shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise FetchError(f"{package.name}@{package.version} is no archive: {error}") from error
    if not folder.is_dir():
        raise FetchError(f"{package.name}@{package.version} has no folder 'package' inside")
