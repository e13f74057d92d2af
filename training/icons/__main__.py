"""Make shards of icons: fetch six families with npm, render them, write webdataset tars.

    python -m training.icons data/icons --size 64 --size 256
    python -m training.icons data/few --size 64 --names tests/data/names.txt

Needs npm (once: packages are cached), about 30 MB of traffic, and some 10 minutes of two cores for
both sizes. Run again, it makes only the sizes that are missing. One pair (family, name) in twenty
goes to ``heldout-*.tar``: evaluate on those, never train on them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from unclip.command_line import Parser, ended

from .build import BuildError, build, check_writable
from .collect import Icon, collect_all
from .fetch import FAMILIES, KEYWORDS, FetchError, default_cache, fetch


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m training.icons", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the shards and manifest.json")
    parser.add_argument(
        "--size", type=int, action="append", dest="sizes", help="pixels a side; may be repeated"
    )
    parser.add_argument("--names", type=Path, help="only the names in this file, one a line")
    parser.add_argument("--per-shard", type=int, default=1000, help="samples in a tar")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="fetched packages")
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or [64]
    if bad := [size for size in options.sizes if not 8 <= size <= 1024]:
        parser.error(f"--size must lie between 8 and 1024, not {bad[0]}")
    for option in ("per_shard", "workers"):
        if (value := getattr(options, option)) is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    return options


def choose(icons: list[Icon], path: Path) -> list[Icon]:
    """The icons whose names the file lists; ``BuildError`` for a name that no icon has."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read the names: {error}") from error
    wanted = {line for line in lines if line and not line.startswith("#")}
    if unknown := sorted(wanted - {icon.thing.name for icon in icons}):
        raise BuildError(f"{path}: no icon is called {', '.join(map(repr, unknown))}")
    return [icon for icon in icons if icon.thing.name in wanted]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    packages = (*FAMILIES, *KEYWORDS)
    try:
        check_writable(options.out)  # before the fetching, which takes a while
        with tqdm(packages, "fetching", unit=" packages") as bar:
            folders = {package.family: fetch(package, options.cache) for package in bar}
        emojilib, emojibase = (folders.pop(package.family) for package in KEYWORDS)
        icons = collect_all(folders, emojibase, emojilib)
        if options.names:
            icons = choose(icons, options.names)
        versions = {package.name: package.version for package in packages}
        manifest = build(options.out, icons, options.sizes, versions, options.workers, options.per_shard)
    except (FetchError, BuildError) as error:
        print(f"training.icons: {error}", file=sys.stderr)
        return 1
    for size, entry in manifest["sizes"].items():
        counts = ", ".join(f"{count} {split}" for split, count in entry["samples"].items())
        print(f"{options.out / size}: {counts}, {len(entry['left out'])} left out")
    return 0


if __name__ == "__main__":
    sys.exit(ended("training.icons", lambda: sys.exit(main())))
