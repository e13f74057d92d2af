"""Seconds a picture by stage, precision and batch size, side by side in one run.

    python -m inference.benchmark icons
    python -m inference.benchmark MODEL --batch-sizes 1 8 64 --device cuda
    python -m inference.benchmark icons --batch 64
    python -m inference.benchmark --pictures photos/*.jpg --sizes 64 256
    python -m inference.benchmark --parts

Every stage runs with the model's own defaults. The last column is the speed as a multiple of the
first row's: within one run of one machine it means something, seconds alone do not. With --batch it draws
that many prompts as ``unclip batch`` does, files and all, and as ``generate`` does, in turns. With
--pictures it compares how training reads pictures with Lanczos from whole ones, in turns; with
--parts, on the CPU, layouts, norms and linear layers in the ways between which was chosen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from unclip import load
from unclip.app import cli
from unclip.app.options import add_device
from unclip.batch.reading import Source
from unclip.batch.work import run
from unclip.command_line import Parser, check_numbers
from unclip.diffusion.noise import Noise
from unclip.files import read_whole
from unclip.pipeline.pipeline import Pipeline
from unclip.resources.devices import autocast
from unclip.stages import Decoder

from .measure import parts, resizing

PRECISIONS = {"fp32": False, "bf16": True}
PICTURE_BYTES = 1 << 28  # of a file of --pictures
PROMPT = "a tropical fish on a yellow background"


def works(pipeline: Pipeline, n: int) -> dict[str, Callable[[], object]]:
    """What each stage does for ``n`` pictures, by its name."""
    steps: dict[str, Callable[[], object]] = {}
    text = embed = picture = None
    if pipeline.takes_prompt:
        text = pipeline.encode_text([PROMPT] * n)
        steps["text"] = lambda: pipeline.encode_text([PROMPT] * n)
    if pipeline.prior is not None:
        many = text.repeat(pipeline.prior.config.sampling.candidates)
        conditions = pipeline.prior_conditions(many)
        steps["prior"] = lambda: pipeline.prior.sample(conditions, Noise(range(len(many)), pipeline.device))
        embed = text.clip.embed
    for stage in pipeline.picture_stages:
        shapes = pipeline.conditions(stage, n, embed, text, picture)
        steps["decoder" if picture is None else f"upsampler {stage.size}"] = _sampling(stage, shapes, n)
        picture = torch.zeros(n, 3, stage.size, stage.size, device=pipeline.device)
    return steps


def _sampling(stage: Decoder, conditions: dict, n: int) -> Callable[[], object]:
    def work() -> None:
        *_, last = stage.sample(conditions, Noise(range(n), stage.embed_mean.device))
        stage.to_picture(last.x, conditions)

    return work


@torch.no_grad()
def measure(pipeline: Pipeline, batch_size: int, bf16: bool, seconds: float = 1.0) -> dict[str, float]:
    """Median seconds a picture of each stage, timed for at least ``seconds`` each."""
    with autocast(pipeline.device, bf16):
        return {
            name: Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=seconds)
            .median
            / batch_size
            for name, work in works(pipeline, batch_size).items()
        }


def overhead(pipeline: Pipeline, rows: int, batch_size: int, rounds: int = 3) -> list[tuple[float, float]]:
    """Seconds of ``generate``, and of a batch of the same pictures and all its files, a pair a round."""
    texts, seconds = [f"picture {number}" for number in range(rows)], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("\n".join(texts), encoding="utf-8")
            begun = time.perf_counter()
            pipeline.generate(texts, batch_size=batch_size)
            between = time.perf_counter()
            run(pipeline, Source(prompts), Path(folder) / "out", batch_size=batch_size)
            seconds.append((between - begun, time.perf_counter() - between))
    return seconds


def table(rows: list[tuple[str, int, dict[str, float]]]) -> str:
    """(precision, batch size, seconds a picture by stage) as Markdown, with the speed-up."""
    stages = list(rows[0][2])
    first = sum(rows[0][2].values())
    lines = [
        "| precision | batch | "
        + " | ".join(f"{stage} (ms)" for stage in stages)
        + " | a picture (ms) | speed |",
        "|---|--:|" + "--:|" * (len(stages) + 2),
    ]
    for precision, batch, times in rows:
        total = sum(times.values())
        cells = [f"{1000 * times[stage]:.1f}" for stage in stages]
        lines.append(
            f"| {precision} | {batch} | {' | '.join(cells)} | {1000 * total:.1f} | {first / total:.2f}x |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.benchmark", description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a model's name or folder")
    add("--batch-sizes", nargs="+", type=int, default=[1, 4, 16], metavar="B", help="default 1 4 16")
    add("--seconds", type=float, default=1.0, help="least time for each measurement (default 1)")
    add("--batch", type=int, metavar="N", help="compare unclip batch with generate, of N prompts")
    add("--pictures", nargs="+", type=Path, metavar="FILE", help="compare ways to read pictures")
    add(
        "--sizes",
        nargs="+",
        type=int,
        default=[64, 256],
        metavar="S",
        help="at so many pixels (default 64 256)",
    )
    add("--parts", action="store_true", help="compare ways to do parts of a step on this CPU")
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        if min(args.batch_sizes) < 1:
            raise ValueError("batch sizes must be at least 1")
        check_numbers(args, seconds=(0, 3600))
        if sum((args.model is not None, args.pictures is not None, args.parts)) != 1:
            raise ValueError("name either a model, --pictures or --parts")
        if args.parts:
            print(parts.table())
            return
        if args.pictures is not None:
            if not all(1 <= size <= 4096 for size in args.sizes):
                raise ValueError("--sizes must lie between 1 and 4096")
            files = [read_whole(path, PICTURE_BYTES) for path in args.pictures]
            print(resizing.table([(size, resizing.compare(files, size)) for size in args.sizes]))
            return
        pipeline = load(args.model, args.device)
        if args.batch is not None:
            check_numbers(args, batch=(1, 100_000))
            pairs = overhead(pipeline, args.batch, max(args.batch_sizes))
            ratio = statistics.median(batch / bare for bare, batch in pairs)
            told = ", ".join(f"{bare:.1f} and {batch:.1f} s" for bare, batch in pairs)
            print(f"{pipeline.name}, {args.batch} pictures, generate and batch: {told}; ratio {ratio:.3f}")
            return
        rows = [
            (name, batch, measure(pipeline, batch, bf16, args.seconds))
            for batch in args.batch_sizes
            for name, bf16 in PRECISIONS.items()
        ]
        where = (
            torch.cuda.get_device_name()
            if pipeline.device.type == "cuda"
            else f"{pipeline.device}, {torch.get_num_threads()} threads"
        )
        print(f"{pipeline.name} on {where}\n\n{table(rows)}")

    return cli.run("inference.benchmark", work)


if __name__ == "__main__":
    sys.exit(main())
