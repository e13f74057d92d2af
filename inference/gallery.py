"""A sheet of pictures: a row a prompt, with its words at the left, or a row a class.

    python -m inference.gallery icons sheet.png --prompts "a goldfish" "a red car" -n 8
    python -m inference.gallery MODEL sheet.png --prompts prompts.txt -n 8 --seed 0 --side 96
    python -m inference.gallery runs/ladder/5-class-conditional sheet.png --classes all
    python -m inference.gallery runs/ladder/2-ddpm sheet.png -n 64 --columns 16 --side 32

With --blind KEY.json the first picture of every prompt is shown, in an order of chance and with numbers in
the place of words, and the key says which is which: someone who has not seen the prompts can say what they
show.

    python -m inference.gallery icons sheet.png --prompts docs/naming.txt --blind key.json --columns 10

A model that takes neither draws -n pictures in rows of --columns. Pictures smaller than --side are
enlarged by whole pixels where they fit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from unclip.app import cli
from unclip.app.options import add_options, options_from
from unclip.batch.reading import read_prompts
from unclip.command_line import Parser, check_numbers
from unclip.data.images import save_png
from unclip.files import write_json
from unclip.pipeline.pipeline import Pipeline

GAP = 4  # white pixels around every picture


def draw(
    pipeline: Pipeline,
    prompts: Sequence[str],
    side: int,
    *,
    n: int = 8,
    batch_size: int = 16,
    **options: object,
) -> list[list[Image.Image]]:
    """``n`` pictures of each prompt, ``side`` pixels high; ``options`` are those of ``generate``."""
    rows, size = [], max(1, batch_size // n)
    for start in range(0, len(prompts), size):
        pictures = pipeline.generate(prompts[start : start + size], n=n, batch_size=batch_size, **options)
        rows += split([resized(picture, side) for picture in pictures], n)
    return rows


def draw_classes(
    pipeline: Pipeline, classes: Sequence[int | None], side: int, *, n: int = 8, **options: object
) -> list[list[Image.Image]]:
    """``n`` pictures of each class (None = any), the same noise for all; else as ``draw``."""
    rows = []
    for number in classes:
        pictures = pipeline.generate(n=n, **{**options, "class_": number})
        rows.append([resized(picture, side) for picture in (pictures if n > 1 else [pictures])])
    return rows


def shuffled(
    prompts: Sequence[str], rows: Sequence[Sequence[Image.Image]], columns: int
) -> tuple[list[str], list[Sequence[Image.Image]], dict[int, str]]:
    """The first picture of each prompt in an order of chance, in rows of ``columns``: what stands beside each
    row (its first and last number), the rows, and the prompt of each number, counted from 1.
    """
    order = Random(0).sample(range(len(prompts)), len(prompts))
    key = {number: prompts[row] for number, row in enumerate(order, 1)}
    mixed = split([rows[row][0] for row in order], columns)
    first = [1 + columns * row for row in range(len(mixed))]
    return [f"{k} - {k + len(row) - 1}" for k, row in zip(first, mixed, strict=True)], mixed, key


def split(pictures: Sequence[Image.Image], n: int) -> list[Sequence[Image.Image]]:
    """Rows of ``n``; the last may be shorter."""
    return [pictures[k : k + n] for k in range(0, len(pictures), n)]


def resized(picture: Image.Image, side: int) -> Image.Image:
    """``side`` pixels high; what becomes a whole multiple keeps its pixels square and sharp."""
    whole = side % picture.width == 0
    return picture.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def sheet(captions: Sequence[str], rows: Sequence[Sequence[Image.Image]], margin: int = 160) -> Image.Image:
    """Rows of square pictures of one size, each with its caption in a margin of that many pixels."""
    side = rows[0][0].width
    step, font = side + GAP, ImageFont.load_default(14)
    canvas = Image.new("RGB", (margin + max(map(len, rows)) * step, len(rows) * step), "white")
    pen = ImageDraw.Draw(canvas)
    for y, (caption, row) in enumerate(zip(captions, rows, strict=True)):
        lines = "\n".join(wrapped(caption, font, margin - 2 * GAP))
        pen.multiline_text((GAP, (y + 0.5) * step), lines, "black", font, anchor="lm")
        for x, picture in enumerate(row):
            canvas.paste(picture, (margin + x * step, y * step + GAP // 2))
    return canvas


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def sheet_of(pipeline: Pipeline, args: argparse.Namespace) -> Image.Image:
    """The sheet that the command line asks for."""
    options = {"n": args.n, "seed": args.seed, "batch_size": args.batch_size, **options_from(args)}
    if args.prompts:
        prompts = args.prompts
        if len(prompts) == 1 and Path(prompts[0]).is_file():
            prompts = read_prompts(prompts[0])
        if args.blind is None:
            return sheet(prompts, draw(pipeline, prompts, args.side, **options))
        rows = draw(pipeline, prompts, args.side, **{**options, "n": 1})
        beside, rows, key = shuffled(prompts, rows, args.columns)
        write_json(args.blind, key)
        return sheet(beside, rows, margin=70)
    if args.classes:
        classes = range(pipeline.classes) if args.classes == ["all"] else [int(k) for k in args.classes]
        if not classes:
            raise ValueError(f"the model {pipeline.name} takes no class")
        rows = draw_classes(pipeline, classes, args.side, **options)
        return sheet([str(k) for k in classes], rows, margin=24)
    if pipeline.takes_prompt:
        raise ValueError(f"the model {pipeline.name} takes prompts; say them with --prompts")
    rows = split(*draw_classes(pipeline, [args.class_], args.side, **options), args.columns)
    return sheet([""] * len(rows), rows, margin=0)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.gallery", description=__doc__)
    add = parser.add_argument
    add("model", help="a model's name or folder")
    add("output", type=Path, help="PNG file to write")
    cli.add_overwrite(parser)
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--prompts", nargs="+", metavar="PROMPT", help="prompts, or a file with one a line")
    of.add_argument("--classes", nargs="+", metavar="K", help="a row for each of these classes, or for all")
    add("-n", type=int, default=8, metavar="N", help="pictures a prompt or class (default 8)")
    add(
        "--columns",
        type=int,
        default=8,
        metavar="N",
        help="pictures in a row, where rows have no prompt or class (default 8)",
    )
    add("--blind", type=Path, metavar="KEY.json", help="shuffle prompts, show numbers, write which is which")
    add("--side", type=int, default=96, metavar="PIXELS", help="of a picture on the sheet (default 96)")
    add("--batch-size", type=int, default=16, metavar="B", help="pictures drawn at a time (default 16)")
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        cli.check_writable(args.output, args.overwrite)
        if args.blind is not None and not args.prompts:
            raise ValueError("--blind hides prompts; say them with --prompts")
        if args.blind is not None:
            cli.check_writable(args.blind, args.overwrite)
        if min(args.n, args.side, args.batch_size, args.columns) < 1:
            raise ValueError("-n, --side, --columns and --batch-size must be at least 1")
        check_numbers(args, n=(1, 10_000), side=(1, 4096))
        save_png(sheet_of(cli.loaded(args), args), args.output)
        print(args.output)

    return cli.run("inference.gallery", work)


if __name__ == "__main__":
    sys.exit(main())
