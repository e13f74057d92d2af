"""The options of a picture on a command line: the fields of ``Options``, and what a model needs besides."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Union, cast, get_args, get_origin

from ..models import DEFAULT_MODEL, shipped_models
from ..options import Asked, Options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how pictures are drawn: the seed, the fields of ``Options``, what guides, the device."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="another seed draws another picture (default 0)")
    for name, field in Options.model_fields.items():
        add(
            flag(name),
            dest=name,
            type=_type_of(field.annotation),
            default=field.default,
            metavar=None if name not in METAVARS else METAVARS[name],
            help=field.description,
        )
    add("--size", type=int, metavar="PIXELS", help="another than the model's own, where no stage follows")
    add("--prior", metavar="PRIOR", help="another prior: eclipse, or a file or folder of one")
    add("--classifier", type=Path, metavar="FILE", help="of noised pictures: its gradient leads to --class")
    add("--weaker", type=Path, metavar="FILE", help="a weaker decoder, to be led away from (autoguidance)")
    add_device(parser)
    add_memory(parser)


METAVARS = {"class_": "K", "classifier_scale": "S"}


def flag(name: str) -> str:
    """ "class_" -> "--class" """
    return f"--{name.rstrip('_').replace('_', '-')}"


def _type_of(annotation: object) -> type:
    """``int`` or ``float`` of a field that is nothing else (or None); text for all others."""
    kinds = get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)
    (*_, kind) = [one for one in kinds if one is not types.NoneType]
    kind = getattr(kind, "__origin__", kind)  # without its bounds
    return kind if kind in (int, float) else str


def options_from(args: argparse.Namespace) -> Asked:
    """The fields of ``Options`` as the command line gives them; None = the model's own."""
    return cast(Asked, {name: getattr(args, name) for name in Options.model_fields})


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
    from ..resources.devices import as_device

    try:
        as_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"{', '.join(shipped_models())}; glide, karlo or another public model (unclip --models lists "
        "them); a folder; or a decoder's checkpoint",
    )
