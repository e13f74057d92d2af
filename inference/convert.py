"""Writes a model as one of our pipeline directories, which then loads without the network or the converter.

    python -m inference.convert glide models/glide
    python -m inference.convert karlo models/karlo --dtype bfloat16
    python -m inference.convert 256x256_diffusion.pt models/adm-256

A model is a public name (``unclip --models`` lists them), files in an original layout, or a directory of
ours, to be stored at another precision.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from unclip import load
from unclip.app import cli
from unclip.command_line import Parser
from unclip.files import remove_own

OWN = r"clip|tokenizer|model\.json|.*\.safetensors|\..*"  # in a model's folder; and files half written
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.convert", description=__doc__)
    parser.add_argument("model", help="a name, a folder or a file")
    parser.add_argument("output", type=Path, help="folder to write; it must not hold a model yet")
    parser.add_argument("--dtype", choices=DTYPES, help="of the stored weights (default: as they are)")
    return parser


def convert(model: str, output: Path, dtype: str | None = None) -> Path:
    """Write ``model`` into the folder ``output``, all or nothing, stored as ``dtype``; returns the folder.

    Raises ``ValueError`` for a folder that cannot be written to or holds something, and for a model as
    ``unclip.load`` does.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there and not empty; name a new folder to write")
    parent = next(folder for folder in output.resolve().parents if folder.exists())
    cli.check_writable(parent / output.name)
    import torch

    pipeline = load(model, "cpu")
    aside = output.with_name(f".{output.name}.partial")
    remove_own(aside, OWN)
    try:
        pipeline.save(aside, None if dtype is None else getattr(torch, dtype))
        os.replace(aside, output)
    finally:
        remove_own(aside, OWN)
    return output


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        folder = convert(args.model, args.output, args.dtype)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{folder}  ({size / 1e9:.2f} GB)")

    return cli.run("inference.convert", work)


if __name__ == "__main__":
    sys.exit(main())
