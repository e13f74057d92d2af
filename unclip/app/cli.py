"""What the commands share: the options of a picture, its file name, and how a mistake ends."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..models import DEFAULT_MODEL, load, shipped_models

if TYPE_CHECKING:
    from ..pipeline.pipeline import Pipeline


SAMPLING = (
    "steps",
    "prior_steps",
    "upsampler_steps",
    "guidance_scale",
    "prior_guidance_scale",
    "clip_guidance_scale",
    "sampler",
    "negative_prompt",
    "class_",
    "classifier_scale",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how pictures are drawn: the seed, the device, and the fields of ``pipeline.Options``."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="another seed draws another picture (default 0)")
    add("--steps", help="sampling steps of the decoder: 24, 10,10,3,2,2, ddim25 or fast27")
    add("--prior-steps", help="sampling steps of the prior")
    add("--upsampler-steps", help="sampling steps of each upsampler")
    add("--guidance-scale", type=float, help="decoder: 1 = none, more = more literal")
    add("--prior-guidance-scale", type=float, help="prior: likewise")
    add("--clip-guidance-scale", type=float, default=0.0, help="climb CLIP's similarity (default 0)")
    add("--sampler", help="ddpm, ddim, dpm++2m or heun")
    add("--negative-prompt", help="what to move away from")
    add("--class", type=int, dest="class_", metavar="K", help="what to draw, for a model of classes")
    add("--classifier", type=Path, metavar="FILE", help="of noised pictures: its gradient leads to --class")
    add("--classifier-scale", type=float, metavar="S", help="how strongly (default 1)")
    add_device(parser)
    add_memory(parser)


def add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights: bfloat16 takes half the memory (default float32)",
    )
    parser.add_argument(
        "--offload",
        action="store_true",
        help="keep stages in the computer's memory, and on the device only while they work",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, help="cpu, cuda, ... (default: a GPU if there is one)")


def _device(name: str) -> str:
    """A device's name, once torch has shown that it is there."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"'{name}' cannot be used here: {reason}") from None
    return name


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"{', '.join(shipped_models())}; glide, karlo "
        "or another public model (unclip --models lists them); a folder; or a decoder's "
        "checkpoint",
    )


def loaded(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the command line names, with its classifier if it names one."""
    return guided(load(args.model, args.device, args.dtype, args.offload), args)


def guided(pipeline: Pipeline, args: argparse.Namespace) -> Pipeline:
    """The pipeline with the classifier that the command line names, if it names one."""
    if args.classifier is None:
        return pipeline
    from ..guides.classifier import load_classifier

    return pipeline.guide_with(load_classifier(args.classifier, pipeline.device))


def options_from(args: argparse.Namespace) -> dict[str, object]:
    """The fields of ``pipeline.Options`` as the command line gives them; None = the model's own."""
    return {name: getattr(args, name) for name in SAMPLING}


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
