"""``unclip vary``, ``unclip edit``, ...: what a model can do with a picture that is there."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..command_line import Parser
from ..files import words
from . import cli
from .options import add_model, add_options, flag, options_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline.pipeline import Pipeline

Kind = Literal["picture", "text", "either"]  # a picture's file, words, or what of both it looks like


@dataclass(frozen=True)
class Verb:
    """What the command line of a verb takes for the method of ``Pipeline`` of its name.

    about:   what it does, and examples.
    starts:  what goes to the method first, and in this order: of which kind, and the help.
    options: more of the method's arguments, as ``add_argument`` has them.
    columns: of the grid of its pictures; None = one row.
    """

    about: str
    starts: Mapping[str, tuple[Kind, str]]
    options: Mapping[str, Mapping[str, Any]]
    columns: int | None = 4


def _count(default: int, what: str) -> dict[str, Any]:
    return {"type": int, "metavar": "N", "default": default, "help": f"{what} (default {default})"}


PICTURE: tuple[Kind, str] = ("picture", "file of a picture")
VERBS = {
    "vary": Verb(
        "New pictures of what CLIP sees in one.\n\nunclip vary cat.png -n 8 --spread 0.5",
        {"picture": PICTURE},
        {
            "n": _count(4, "pictures, as one grid"),
            "spread": {
                "type": float,
                "default": 1.0,
                "help": "from 0, the picture itself, to 1 (default 1.0)",
            },
        },
    ),
    "interpolate": Verb(
        "Pictures on the way from one picture or text to another.\n\n"
        "unclip interpolate cat.png dog.png -n 7\n"
        'unclip interpolate cat.png "a red car" -o path.png',
        {"a": ("either", "file of a picture, or a text"), "b": ("either", "likewise")},
        {"n": _count(5, "pictures, with both ends")},
        columns=None,
    ),
    "edit": Verb(
        "A picture, moved as one text differs from another.\n\n"
        'unclip edit flower.png "a red flower" "a blue flower" --strength 0.4 -n 5',
        {
            "picture": PICTURE,
            "source": ("text", "what it shows, in words that differ from the next as it is to change"),
            "target": ("text", "what it is to show"),
        },
        {
            "strength": {
                "type": float,
                "default": 0.3,
                "help": "from 0, the picture, to 1, the words alone (default 0.3)",
            },
            "n": _count(1, "pictures on the way to that strength"),
        },
        columns=None,
    ),
}


def parser(verb: str) -> Parser:
    parser = Parser(prog=f"unclip {verb}", description=VERBS[verb].about)
    for name, (_, text) in VERBS[verb].starts.items():
        parser.add_argument(name, help=text)
    for name, how in VERBS[verb].options.items():
        parser.add_argument(f"-{name}" if len(name) == 1 else flag(name), **how)
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: of the words above)")
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

    starts = [
        getattr(args, name) if kind == "text" else end_of(getattr(args, name), text=kind == "either")
        for name, (kind, _) in VERBS[verb].starts.items()
    ]
    pipeline: Pipeline = cli.loaded(args)
    asked = {name: value for name, value in options_from(args).items() if value is not None}
    pictures = getattr(pipeline, verb)(
        *starts,
        **{name: getattr(args, name) for name in VERBS[verb].options},
        seed=args.seed,
        progress=cli.progress(),
        **asked,
    )
    return pictures if isinstance(pictures, list) else [pictures]


def _output(verb: str, args: argparse.Namespace) -> Path:
    kinds = {name: kind for name, (kind, _) in VERBS[verb].starts.items()}
    starts = {name: getattr(args, name) for name in kinds}
    named = [words(text if kinds[name] == "text" else Path(text).stem) for name, text in starts.items()]
    default = Path(f"{words(' '.join(named), 150)}-{verb}.png")
    return args.output or (default if args.overwrite else cli.unused(default))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
