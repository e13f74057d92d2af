"""What a denoiser is asked and what it answers: pictures under rising noise, and the picture seen in each.

    python -m inference.denoising runs/ladder/1-toy data/digits denoising.png
    python -m inference.denoising MODEL 'SHARDS/heldout-*.tar' out.png -n 4 --columns 12

Two rows a picture. Above, it goes under in noise from left to right, in even steps of t from data to
pure noise (the forward process); below stands what the decoder predicts from that alone. Held-out
pictures, the same noise at every t, no guidance.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor

from unclip import load
from unclip.app import cli
from unclip.app.options import add_device
from unclip.app.strip import film_strip
from unclip.command_line import Parser, check_numbers
from unclip.data.images import save_png
from unclip.data.reading import read_shards
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.noise import Noise, fold
from unclip.diffusion.samplers import Step
from unclip.stages import Conditions, Decoder

from .measure.likelihood import examples, shards_of


@torch.no_grad()
def look(stage: Decoder, x0: Tensor, conditions: Conditions, columns: int, noise: Noise) -> list[Step]:
    """x_t and the picture predicted from it, at t = 0 and ``columns`` - 1 even levels up to T.

    x0: pictures [N,3,S,S] in [-1,1].
    """
    denoise, eps = stage.denoise(conditions, stage.null(conditions), 1.0), noise(x0.shape[1:])
    steps = [Step(0, x0, x0)]
    for k in range(1, columns):
        t = round(stage.schedule.timesteps * k / (columns - 1))
        x = diffuse(x0, eps, stage.schedule.at(t))
        steps.append(Step(t, x, denoise(x, torch.full((len(x),), t, device=x.device)).x0))
    return steps


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.denoising", description=__doc__)
    add = parser.add_argument
    add("model", help="a model's name or folder, or a decoder's checkpoint")
    add("shards", help="shards, or a folder with heldout-*.tar")
    add("output", type=Path, help="PNG file to write")
    cli.add_overwrite(parser)
    add("-n", type=int, default=2, metavar="N", help="pictures (default 2)")
    add("--columns", type=int, default=11, metavar="N", help="levels of noise, with none at all (default 11)")
    add("--size", type=int, metavar="S", help="make pictures this high first, as the recipe's data.size did")
    add("--seed", type=int, default=0, help="another seed, other pictures and other noise (default 0)")
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        cli.check_writable(args.output, args.overwrite)
        if args.n < 1 or args.columns < 2:
            raise ValueError("-n must be at least 1, and --columns at least 2")
        check_numbers(args, n=(1, 10_000), columns=(2, 10_000), size=(1, 4096))
        pipeline = load(args.model, args.device)
        samples = read_shards(shards_of([args.shards]), shuffle=10_000, seed=fold(args.seed))
        samples = list(itertools.islice(samples, args.n))
        size = args.size or min(samples[0]["image"].size)
        x0, conditions = examples(pipeline.decoder, pipeline.clip, samples, size, pipeline.tokenizer)
        noise = Noise([fold(args.seed, k) for k in range(len(x0))], x0.device)
        steps = look(pipeline.decoder, x0, conditions, args.columns, noise)
        save_png(film_strip(steps, args.columns), args.output)
        print(args.output)

    return cli.run("inference.denoising", work)


if __name__ == "__main__":
    sys.exit(main())
