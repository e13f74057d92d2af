"""``unclip vary`` and ``unclip interpolate``: what a model can do with a picture that is there.

unclip vary cat.png -n 8 --spread 0.5
unclip interpolate cat.png dog.png -n 7
unclip interpolate cat.png "a red car" -o path.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import Parser
from ..files import words
from . import cli
from .options import add_model, add_options, flag, options_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Verb:
    """What the command line of a verb takes for the method of ``Pipeline`` of its name.

    starts:  files of pictures, which go to the method first, with the help for each.
    options: more of the method's arguments, as ``add_argument`` has them.
    texts:   whether a text may stand in place of a picture.
    columns: of the grid of its pictures; None = one row.
    """

    starts: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]]
    texts: bool = False
    columns: int | None = 4


COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
SPREAD = {"type": float, "default": 1.0, "help": "from 0, the picture itself, to 1 (default 1.0)"}
VERBS = {
    "vary": Verb(
        {"picture": "file of a picture"},
        {"n": {**COUNT, "default": 4, "help": "pictures, as one grid (default 4)"}, "spread": SPREAD},
    ),
    "interpolate": Verb(
        {"a": "file of a picture, or a text", "b": "likewise"},
        {"n": {**COUNT, "default": 5, "help": "pictures, with both ends (default 5)"}},
        texts=True,
        columns=None,
    ),
}


def parser(verb: str) -> Parser:
    parser = Parser(prog=f"unclip {verb}", description=__doc__)
    for name, text in VERBS[verb].starts.items():
        parser.add_argument(name, help=text)
    for name, how in VERBS[verb].options.items():
        parser.add_argument(f"-{name}" if len(name) == 1 else flag(name), **how)
    parser.add_argument(
        "-o", "--output", type=Path, help="file to write (default: the words of what is given)"
    )
    cli.add_overwrite(parser)
    add_model(parser)
    add_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Entry point, of a verb and its arguments; returns the exit code."""
    verb, start = argv[0], time.perf_counter()
    args = parser(verb).parse_args(argv[1:])

    def work() -> None:
        output = _output(verb, args)
        cli.check_png(output, args.overwrite)
        from ..data.images import save_png

        pictures = draw(verb, args)
        save_png(cli.sheet(pictures, VERBS[verb].columns or len(pictures)), output)
        print(f"{output}  (model {args.model}, seed {args.seed}, {time.perf_counter() - start:.1f} s)")

    return cli.run(f"unclip {verb}", work)


def draw(verb: str, args: argparse.Namespace) -> list[Image]:
    """The pictures of a verb; its files are looked at before the model is loaded."""
    from ..pipeline.edits import end_of

    starts = [end_of(getattr(args, name), VERBS[verb].texts) for name in VERBS[verb].starts]
    pipeline: Pipeline = cli.loaded(args)
    asked = {name: value for name, value in options_from(args).items() if value is not None}
    return getattr(pipeline, verb)(
        *starts,
        **{name: getattr(args, name) for name in VERBS[verb].options},
        seed=args.seed,
        progress=cli.progress(),
        **asked,
    )


def _output(verb: str, args: argparse.Namespace) -> Path:
    names = [words(Path(getattr(args, name)).stem) for name in VERBS[verb].starts]
    default = Path(f"{'-'.join([*names, verb])[:200]}.png")
    return args.output or (default if args.overwrite else cli.unused(default))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
