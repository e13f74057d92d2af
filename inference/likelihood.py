"""Measure how well a model knows pictures: the variational bound on their likelihood, in bits per dimension.

    python -m inference.likelihood runs/ddpm data/icons/64
    python -m inference.likelihood MODEL 'SHARDS/heldout-*.tar' --limit 200 --json bits.json
    python -m inference.likelihood icons SHARDS --stage decoder --steps 100

MODEL is a model's name or folder, a decoder's checkpoint, or the folder of its run. The decoder (or
--stage) is given what it takes: each picture's class (the integer "class" of its record), its caption
(of icons "a tropical fish, flat style"), its CLIP embedding. Without guidance, x0 clamped to [-1, 1].

The bound is the sum of L_T (the prior's), a divergence for every step of the process, and L_0 (the
8-bit data's; Ho et al. 2020, eq. 5). --steps bounds the likelihood of a respaced chain, which is
another, coarser model: its number is larger, and it takes less time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from unclip import load
from unclip.app import cli
from unclip.app.options import add_device
from unclip.command_line import Parser
from unclip.data.reading import read_shards
from unclip.diffusion.noise import fold
from unclip.files import write_json

from .measure.likelihood import likelihood, shards_of, stage_of


def table(report: dict) -> str:
    """A report as Markdown: the bound, and its terms by quarter of the process."""
    *between, last = report["terms"]
    rows = [("L_0, the data", last["bits"])]
    for q, name in enumerate(("first", "second", "third", "last")):
        part = [term["bits"] for term in between if (term["t"] - 1) * 4 // report["timesteps"] == q]
        if part:
            rows.append((f"{name} quarter of t, {len(part)} steps", sum(part)))
    rows += [("L_T, the prior", report["prior"]), ("**bound**", report["bits_per_dim"])]
    conditions = f", given their {' and '.join(report['given'])}" if report["given"] else ""
    error = report["standard_error"]
    lines = ["| term | bits per dimension |", "|---|--:|"]
    lines += [f"| {name} | {bits:.4f} |" for name, bits in rows]
    return "\n".join(lines) + (
        f"\n\n{report['pictures']} pictures of {report['size']} pixels{conditions}; {report['steps']} of "
        f"{report['timesteps']} steps{f'; standard error {error:.4f}' if error is not None else ''}."
    )


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.likelihood", description=__doc__)
    add = parser.add_argument
    add("model", help="a model's name or folder, or a decoder's checkpoint")
    add("shards", nargs="+", help="shards, or a folder (of which the heldout-*.tar if it has such)")
    add("--stage", default="decoder", help="decoder, or upsampler-256 and the like (default decoder)")
    add("--limit", type=int, metavar="N", help="pictures to use, chosen at random (default: all)")
    add(
        "--steps",
        metavar="N",
        help="steps of a respaced chain, such as 50 or 10,10,3,2,2 (default: the whole process)",
    )
    add(
        "--size",
        type=int,
        metavar="S",
        help="make pictures this high first, as the recipe's data.size did "
        "(default: the first picture's own height)",
    )
    add("--batch-size", type=int, default=32, metavar="B", help="pictures at a time (default 32)")
    add("--seed", type=int, default=0, help="another seed draws other noise (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the report there too, with the term of every step")
    cli.add_overwrite(parser)
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        if args.json:
            cli.check_writable(args.json, args.overwrite)
        for name in ("limit", "size", "batch_size"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        shards = shards_of(args.shards)
        pipeline = load(args.model, args.device)
        samples = itertools.islice(read_shards(shards, shuffle=10_000, seed=fold(args.seed)), args.limit)
        report = {"model": args.model, "stage": args.stage} | likelihood(
            stage_of(pipeline, args.stage),
            samples,
            clip=pipeline.clip,
            tokenizer=pipeline.tokenizer,
            steps=args.steps,
            size=args.size,
            batch_size=args.batch_size,
            seed=args.seed,
        )
        if args.json:
            write_json(args.json, report)
        print(table(report))

    return cli.run("inference.likelihood", work)


if __name__ == "__main__":
    sys.exit(main())
