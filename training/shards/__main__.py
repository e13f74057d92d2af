"""Make shards of your own pictures: from a folder, from a table, or from shards that you have.

    python -m training.shards my/pictures data/mine                # a.jpg with a.txt, in any folders below
    python -m training.shards my/table.csv data/mine --caption text --picture path
    python -m training.shards 'laion/{00000..00009}.tar' data/mine --size 256 --min-size 200
    python -m training.shards my/pictures data/mine --heldout 0.05 --background '#808080' --workers 8

A .txt holds a caption, or several, one a line. A table (.csv, .tsv, .jsonl, .parquet) has a column of paths,
or of the pictures' bytes, and one or more of captions. Shards hold jpg, png or webp with txt, json ("caption"
or "captions") or both, as img2dataset writes them. Pictures may be of any mode that PIL opens. Those that
training can read stay as they are, unless --size or --format says more; others come out upright, in RGB, what
is transparent on --background. The same input gives the same bytes, however many workers there are.

OUT appears when it is complete: train-000000.tar and on, heldout-*.tar, manifest.json with counts and
SHA-256, and left-out.jsonl, which names every sample that could not be used and says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from unclip.command_line import WORKERS, Parser, check_numbers

from .build import build, summary
from .prepare import Options
from .sources import Columns


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m training.shards", description=__doc__)
    add = parser.add_argument
    add("source", help="a folder, a table, or shards (a path, a glob, a brace range, a URL)")
    add("out", type=Path, help="the folder to be made")
    add("--size", type=int, help="shrink pictures until their shorter side has so many pixels")
    add("--min-size", type=int, default=1, help="leave out pictures with a shorter side (default 1)")
    add("--max-aspect", type=float, help="leave out pictures that are longer than this times their width")
    add("--background", default="white", help="colour behind what is transparent (default white)")
    add(
        "--format",
        choices=("keep", "jpg", "png", "webp"),
        default="keep",
        help="how pictures are stored (default keep: as they are, where that can be)",
    )
    add("--quality", type=int, default=95, help="of jpg and webp that are written anew (default 95)")
    add("--uncaptioned", action="store_true", help="take pictures without a caption, too")
    add("--captions", choices=("all", "first"), default="all", help="of several take all, or the first alone")
    add("--picture", help="the table's column of paths or bytes")
    add("--caption", action="append", default=[], help="the table's column of captions; may be repeated")
    add("--root", type=Path, help="where a table's relative paths begin (default: beside it)")
    add("--heldout", type=float, default=0.0, metavar="SHARE", help="share that goes to heldout-*.tar")
    add("--per-shard", type=int, default=1000, help="samples in a shard (default 1000)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    add("--overwrite", action="store_true", help="replace shards that this program has put there")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    side = (1, 1 << 16)
    check_numbers(args, size=side, min_size=side, max_aspect=side, quality=(1, 100), workers=WORKERS)
    check_numbers(args, per_shard=(1, 1 << 24))
    options = Options(
        args.size,
        args.min_size,
        args.max_aspect,
        args.background,
        args.format,
        args.quality,
        args.uncaptioned,
        args.captions == "first",
    )
    columns = Columns(args.picture, tuple(args.caption), args.root)
    result = build(
        args.source, args.out, options, columns, args.heldout, args.per_shard, args.workers, args.overwrite
    )
    print(summary(result, args.out), file=sys.stderr)


if __name__ == "__main__":
    from ..programs import run

    run(main)
