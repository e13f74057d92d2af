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
    from ..pipeline.pipeline import Pipeline


def loaded(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the command line names, with its classifier if it names one."""
    return guided(load(args.model, args.device, args.dtype, args.offload), args)


def guided(pipeline: Pipeline, args: argparse.Namespace) -> Pipeline:
    """The pipeline with the classifier that the command line names, if it names one."""
    if args.classifier is None:
        return pipeline
    from ..guides.classifier import load_classifier

    return pipeline.guide_with(load_classifier(args.classifier, pipeline.device))


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


def unused(path: Path) -> Path:
    """The path, or if there is such a file the next one: cat.png, cat-2.png, cat-3.png, ..."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not os.path.lexists(name))


def note(message: str) -> None:
    """Tell the user something that is no error, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"note: {message}", file=sys.stderr)


def run(name: str, work: Callable[[], None]) -> int:
    """Call ``work``, whose warnings become notes; returns the exit code, as ``ended`` does."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        return ended(name, work)
