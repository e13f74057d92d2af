"""A picture for every line of a file, in batches. Run again, it makes only what is missing.

    unclip batch prompts.txt out/
    unclip batch prompts.txt out/ -n 4 --seed 7 --guidance-scale 3 --batch-size 64

Blank lines and lines that begin with # are skipped. Line 12, "a goldfish", becomes
``out/0012-a-goldfish.png``, the picture that ``unclip "a goldfish"`` draws with the same seed (but for
rounding, which depends on the batch); the others of -n become ``0012-a-goldfish-2.png`` and on.
``out/index.jsonl`` lists the complete pictures, ``out/batch.json`` says how they were drawn; other
options or prompts need --overwrite.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..command_line import Parser
from . import cli
from .options import add_model, add_options, options_from


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="unclip batch", description=__doc__)
    add = parser.add_argument
    add("prompts", type=Path, help="text file (UTF-8), a prompt a line")
    add("output", type=Path, help="folder for the pictures")
    add("-n", type=int, default=1, metavar="N", help="pictures a prompt (default 1)")
    add("--batch-size", type=int, default=16, metavar="B", help="pictures drawn at a time (default 16)")
    add("--overwrite", action="store_true", help="replace pictures of other options or prompts")
    cli.add_metadata(parser)
    add_model(parser)
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        from ..batch.draw import draw
        from ..batch.lines import read_prompts

        start = time.perf_counter()
        prompts = read_prompts(args.prompts)
        pipeline = cli.loaded(args)
        count = draw(
            pipeline,
            prompts,
            args.output,
            n=args.n,
            seed=args.seed,
            batch_size=args.batch_size,
            overwrite=args.overwrite,
            metadata=args.metadata,
            **options_from(args),
        )
        print(
            f"{args.output}: {count} pictures made of {len(prompts) * args.n}  (model {args.model}, "
            f"seed {args.seed}, {time.perf_counter() - start:.1f} s)"
        )

    return cli.run("unclip batch", work)


if __name__ == "__main__":
    sys.exit(main())
