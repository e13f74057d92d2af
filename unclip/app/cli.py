"""What the commands share: the model that is named, the files that are written, and how a mistake ends."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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


def check_writable(output: Path) -> None:
    """Find out now, not after the work, that the file cannot be written."""
    folder = output.parent
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{output} cannot be written: {folder} is not a folder that can be written to")


def note(message: str) -> None:
    """Tell the user something that is no error, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"note: {message}", file=sys.stderr)


def run(name: str, work: Callable[[], None]) -> int:
    """Call ``work``; returns the exit code. A user's mistake ends as one message, not a traceback."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        try:
            work()
        except (ValueError, OSError, ImportError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{name}: stopped", file=sys.stderr)
            return 130
    return 0
