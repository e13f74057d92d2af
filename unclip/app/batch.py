"""Pictures for every row of a file of any length, by any number of workers. Again, it makes what is missing.

    unclip batch prompts.txt out/
    unclip batch rows.csv out/ -n 4 --seed 7 --guidance-scale 3
    zcat rows.jsonl.gz | unclip batch - out/ --format jsonl --shards

A .txt has a prompt a line (blank lines and those that begin with # are skipped); .csv, .tsv, .jsonl and
.parquet have a column ``prompt``, and any option a row: seed, n, steps, guidance_scale, ...; verb (vary,
redraw, ...) with image, mask, ...; .jsonl may be that of OpenAI's batches. Line 12, "a goldfish", becomes
``out/0000/0012-a-goldfish.png``, the picture that ``unclip "a goldfish"`` draws with the same seed (but for
rounding, which depends on the batch). ``out/index.jsonl`` lists the pictures, ``out/errors.jsonl`` the rows
that cannot be drawn, with the reason. The exit status is 0 if all rows have their pictures, and 1 if not.

Several at once, on any machines that see the folder, share the work: start the same command again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import Parser, check_numbers
from . import cli
from .options import add_model, add_options, options_from

if TYPE_CHECKING:
    from ..batch.reading import Source
    from ..batch.work import Report

FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet")
INTERVAL = 30.0  # seconds between lines where nobody sees a bar


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="unclip batch", description=__doc__)
    add = parser.add_argument
    add("prompts", type=Path, help="file of rows, plain or gzip; - for standard input")
    add("output", type=Path, help="folder for the pictures")
    add("-n", type=int, default=1, metavar="N", help="pictures a row that says nothing else (default 1)")
    add("--format", choices=FORMATS, help="of the rows (default: by the file's name; of standard input txt)")
    add("--ignore", action="append", default=[], metavar="COLUMN", help="pass over a column; again for more")
    add("--batch-size", type=int, metavar="B", help="pictures drawn at a time (default: what memory holds)")
    add("--block", type=int, metavar="ROWS", help="rows that a worker claims at once (default 64)")
    add("--shards", action="store_true", help="write webdataset tars in place of files")
    add("--parquet", action="store_true", help="write Parquet in place of files")
    add("--sheet", action="store_true", help="write a contact sheet of each block, too")
    add("--verify", action="store_true", help="read all pictures that are there, and make damaged ones anew")
    add("--no-wait", dest="wait", action="store_false", help="end when only others' blocks are left")
    add("--lease", type=float, default=60.0, metavar="S", help="of a silent worker until it is given up (60)")
    add("--overwrite", action="store_true", help="replace pictures of other options or prompts")
    cli.add_metadata(parser)
    add_model(parser)
    add_options(parser)
    return parser


def batch(args: argparse.Namespace) -> Report:
    """Do what the command line asks for."""
    from ..batch.asking import COLUMNS
    from ..batch.reading import Source
    from ..batch.work import run
    from ..plan import fitting

    check_numbers(args, n=(1, 10_000), batch_size=(1, 4096), block=(1, 100_000), lease=(1, 86_400))
    if args.shards and args.parquet:
        raise ValueError("--shards and --parquet are two forms of the same; give one of them")
    source = Source(args.prompts, args.format, COLUMNS, args.ignore)
    args.device = args.device or _own_device()
    pipeline = cli.loaded(args)
    with _Told() as told:
        report = run(
            pipeline,
            source,
            args.output,
            n=args.n,
            seed=args.seed,
            batch_size=args.batch_size,
            usual=args.batch_size or fitting(pipeline),
            block=args.block,
            form="shards" if args.shards else "parquet" if args.parquet else "pictures",
            sheet=args.sheet,
            metadata=args.metadata,
            overwrite=args.overwrite,
            verify=args.verify,
            expires=args.lease,
            wait=args.wait,
            told=told.tell,
            **options_from(args),
        )
    if not (report.made or report.there or report.bad or report.elsewhere):
        raise ValueError(f"{args.prompts} holds no prompt; write one a line, for example: a goldfish")
    return report


def _own_device() -> str | None:
    """Of a process that a launcher started beside others, its own GPU."""
    import torch

    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    if rank is None or not rank.isdigit() or not torch.cuda.is_available():
        return None
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


class _Told:
    """What is said of progress: a bar on a terminal, else a line now and then. A context manager."""

    def __enter__(self) -> _Told:
        from tqdm import tqdm

        self.start = self.last = time.monotonic()
        self.bar = tqdm(unit="pic", smoothing=0.05) if sys.stderr.isatty() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, report: Report, source: Source) -> None:
        done, share, now = report.made + report.there, source.share, time.monotonic()
        if self.bar is not None:
            self.bar.total = round(done / share) if share else None  # as if the rest were like this
            self.bar.n = done
            self.bar.refresh() if now - self.last > 0.1 or self.last == self.start else None
            self.last = now
        elif now - self.last >= INTERVAL:
            rate = report.made / (now - self.start)
            left = "" if not share or not rate else f", {_clock(done * (1 / share - 1) / rate)} left"
            print(f"{done:,} pictures, {rate:.2f} a second{left}", file=sys.stderr, flush=True)
            self.last = now


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> int:
        start = time.perf_counter()
        report = batch(args)
        for note in report.notes:
            cli.note(note)
        seconds = time.perf_counter() - start
        print(
            f"{args.output}: {report.made} pictures made of {report.made + report.there}  "
            f"(model {args.model}, seed {args.seed}, {seconds:.1f} s)"
        )
        if report.bad:
            print(
                f"{report.bad} rows could not be drawn: {args.output}/errors.jsonl says why", file=sys.stderr
            )
        if report.elsewhere:
            print(f"{report.elsewhere} blocks are still drawn by others", file=sys.stderr)
        return 0 if report.whole else 1

    return cli.run("unclip batch", work)


if __name__ == "__main__":
    sys.exit(main())
