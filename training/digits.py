"""Make shards of handwritten digits: the 1,797 of scikit-learn, eight pixels high.

    python -m training.digits data/digits
    python -m training.digits data/digits-16 --size 16

Real handwriting that comes with a package, small enough to learn in minutes. White on black; caption
"a seven", record with name ("seven") and class (7). One in twenty goes to ``heldout-*.tar``. Needs
scikit-learn: pip install "unclip[ladder]".
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from unclip.command_line import Parser
from unclip.data.writing import ShardWriter

from .programs import run

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WHITE = 16  # the largest value of scikit-learn's pixels


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [1797,8,8] in 0..16 and what they are [1797]; ``ValueError`` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError('this needs scikit-learn; install it with: pip install "unclip[ladder]"') from None
    data = load_digits()
    return data.images, data.target


def held_out(index: int) -> bool:
    """Whether a digit is one of the twentieth never learnt from, by the rule of the icons."""
    return int(hashlib.sha256(f"digits/{index:04d}".encode()).hexdigest(), 16) % 20 == 0


def sample(pixels: np.ndarray, number: int, size: int) -> dict[str, bytes]:
    """The files of one sample: pixels [8,8] in 0..16 as a PNG of that size, caption, record."""
    picture = Image.fromarray((pixels * (255 / WHITE)).round().astype(np.uint8))
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    name, article = NAMES[number], "an" if number == 8 else "a"
    record = json.dumps({"class": number, "name": name}, sort_keys=True)
    return {"png": file.getvalue(), "txt": f"{article} {name}".encode(), "json": record.encode()}


def build(out: Path, size: int = 8) -> dict[str, int]:
    """Write ``out/{train,heldout}-000000.tar`` and on; returns the number of pictures in each."""
    if not 8 <= size <= 64:
        raise ValueError(f"--size must lie between 8 and 64, not {size}")
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} holds shards already; name another folder")
    images, classes = digits()
    with ShardWriter(out, "train", 2000) as train, ShardWriter(out, "heldout", 2000) as heldout:
        for index, (pixels, number) in enumerate(zip(images, classes.tolist(), strict=True)):
            writer = heldout if held_out(index) else train
            writer.write(f"digits--{index:04d}", sample(pixels, number, size))
        return {"train": train.count, "heldout": heldout.count}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m training.digits", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument(
        "--size", type=int, default=8, help="pixels a side; above 8 they are enlarged (bicubic) (default 8)"
    )
    args = parser.parse_args(argv)
    counts = build(args.out, args.size)
    print(f"{args.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


if __name__ == "__main__":
    run(main)
