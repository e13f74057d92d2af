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

# A picture's file, words, words that may be left out, or a file or words, whichever it looks like.
Kind = Literal["picture", "text", "prompt", "either"]


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


def _strength(default: float, what: str) -> dict[str, Any]:
    return {"type": float, "default": default, "help": f"{what} (default {default})"}


PICTURE: tuple[Kind, str] = ("picture", "file of a picture")
VERBS = {
    "vary": Verb(
        "New pictures of what CLIP sees in one.\n\nunclip vary cat.png -n 8 --spread 0.5",
        {"picture": PICTURE},
        {
            "n": _count(4, "pictures, as one grid"),
            "spread": _strength(1.0, "from 0, the picture itself, to 1"),
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
            "strength": _strength(0.3, "from 0, the picture, to 1, the words alone"),
            "n": _count(1, "pictures on the way to that strength"),
        },
        columns=None,
    ),
    "redraw": Verb(
        'A picture, drawn over as a prompt says.\n\nunclip redraw sketch.png "a red flower" --strength 0.7',
        {"picture": PICTURE, "prompt": ("prompt", "what is to be seen; none for a model that takes none")},
        {
            "strength": _strength(0.6, "from 0, the picture, to 1, the prompt alone"),
            "n": _count(1, "pictures, as one grid"),
        },
    ),
    "inpaint": Verb(
        "A picture, of which a part is drawn anew and the rest kept exactly.\n\n"
        'unclip inpaint field.png mask.png "a corgi in a field"',
        {
            "picture": PICTURE,
            "mask": ("picture", "file of a picture of its size: white is drawn anew, black is kept"),
            "prompt": ("prompt", "what the whole is to show; none for a model that takes none"),
        },
        {"n": _count(1, "pictures, as one grid")},
    ),
    "upscale": Verb(
        "A picture of any size, enlarged by the model's upsamplers.\n\nunclip upscale photo.png",
        {"picture": PICTURE, "prompt": ("prompt", "what it shows, if the upsamplers take words")},
        {
            "batch_size": {
                "type": int,
                "metavar": "B",
                "default": 16,
                "help": "tiles of a large picture drawn at a time (default 16)",
            }
        },
    ),
}


def parser(verb: str) -> Parser:
    parser = Parser(prog=f"unclip {verb}", description=VERBS[verb].about)
    for name, (kind, text) in VERBS[verb].starts.items():
        parser.add_argument(name, nargs="?" if kind == "prompt" else None, help=text)
    for name, how in VERBS[verb].options.items():
        parser.add_argument(f"-{name}" if len(name) == 1 else flag(name), **how)
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: of the words above)")
    cli.add_overwrite(parser)
    cli.add_metadata(parser)
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
        save_png(cli.sheet(pictures, VERBS[verb].columns or len(pictures)), output, args.metadata)
        print(f"{output}  (model {args.model}, seed {args.seed}, {time.perf_counter() - start:.1f} s)")

    return cli.run(f"unclip {verb}", work)


def draw(verb: str, args: argparse.Namespace) -> list[Image]:
    """The pictures of a verb; its files are looked at before the model is loaded."""
    from ..pipeline.canvas import end_of

    starts = [
        end_of(getattr(args, name), text=kind == "either")
        if kind in ("picture", "either")
        else getattr(args, name)
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
    starts = [(kind, getattr(args, name)) for name, (kind, _) in VERBS[verb].starts.items()]
    named = [
        words(Path(start).stem if kind in ("picture", "either") else start)
        for kind, start in starts
        if start is not None
    ]
    default = Path(f"{words(' '.join(named), 150)}-{verb}.png")
    return args.output or (default if args.overwrite else cli.unused(default))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
