"""What the commands share: the model that is named, the files that are written, and how a mistake ends."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import ended
from ..files import remove_leftovers
from ..models import load

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline.pipeline import Pipeline


def loaded(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the command line names, with the parts that it names besides."""
    pipeline = load(args.model, args.device, args.dtype, args.offload)
    return guided(pipeline if args.size is None else pipeline.at_size(args.size), args)


def guided(pipeline: Pipeline, args: argparse.Namespace) -> Pipeline:
    """The pipeline with the prior and the guides that the command line names, if any."""
    if args.prior is not None:
        from ..convert import load_prior
        from ..resources.devices import parse_dtype

        pipeline = pipeline.with_prior(load_prior(args.prior, pipeline, parse_dtype(args.dtype)))
    if args.classifier is not None:
        from ..guides.classifier import load_classifier

        pipeline = pipeline.guide_with(load_classifier(args.classifier, pipeline.device))
    if args.weaker is not None:
        from ..resources.devices import parse_dtype
        from ..stages import load_decoder

        weaker = load_decoder(args.weaker, pipeline.device, parse_dtype(args.dtype))
        pipeline = pipeline.autoguide_with(weaker)
    return pipeline


def check_writable(output: Path, overwrite: bool = True) -> None:
    """Find out now, not after the work, that a file cannot be written, or is there and must not be replaced.

    What a killed program left half written of it is removed.
    """
    folder = output.parent
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{output} cannot be written: {folder} is not a folder that can be written to")
    if not overwrite and os.path.lexists(output):
        raise ValueError(f"{output} is there; name another file, or give --overwrite to have it replaced")
    remove_leftovers(folder, re.escape(output.name), seconds=60)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def add_metadata(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="write pictures that do not say how they were made",
    )


def unused(path: Path) -> Path:
    """The path, or if there is such a file the next one: cat.png, cat-2.png, cat-3.png, ..."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not os.path.lexists(name))


def check_png(output: Path, overwrite: bool) -> None:
    """As ``check_writable``, of a picture."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output}: pictures are written as PNG; give the file a name that ends in .png")
    check_writable(output, overwrite)


def sheet(pictures: list[Image], columns: int = 4) -> Image:
    """All pictures as one grid."""
    import torch

    from ..data.images import grid, to_tensor
    from ..provenance import stamp_sheet

    if len(pictures) == 1:
        return pictures[0]
    columns = min(len(pictures), columns)
    return stamp_sheet(grid(torch.stack([to_tensor(one) for one in pictures]), columns), pictures, columns)


def progress() -> Callable[[str, int, int], None] | None:
    """What draws a bar for every stage; None where nobody would see it."""
    return _bar if sys.stderr.isatty() else None


def _bar(stage: str, done: int, total: int) -> None:
    bar = "#" * (20 * done // total)
    end = "\r" if done < total else "\r\033[K"
    print(f"{stage:>14} [{bar:<20}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Tell the user something that is no error, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"note: {message}", file=sys.stderr)


def run(name: str, work: Callable[[], object]) -> int:
    """Call ``work``, whose warnings become notes; returns the exit code, as ``ended`` does."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        return ended(name, work)
