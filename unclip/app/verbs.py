"""``unclip vary`` and ``unclip interpolate``: what a model can do with a picture that is there.

unclip vary cat.png -n 8 --spread 0.5
unclip interpolate cat.png dog.png -n 7
unclip interpolate cat.png "a red car" -o path.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import Parser
from ..files import words
from . import cli
from .options import add_model, add_options, options_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline.pipeline import Pipeline


def _vary(parser: Parser) -> None:
    parser.add_argument("picture", help="file of a picture")
    parser.add_argument("-n", type=int, default=4, metavar="N", help="pictures, as one grid (default 4)")
    parser.add_argument(
        "--spread", type=float, default=1.0, help="from 0, the picture itself, to 1 (default 1.0)"
    )


def _interpolate(parser: Parser) -> None:
    parser.add_argument("a", help="file of a picture, or a text")
    parser.add_argument("b", help="likewise")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="pictures, with both ends (default 5)")


# Of every verb what its command line takes, by name; what stands without a dash goes first to its method.
VERBS: dict[str, tuple[Callable[[Parser], None], list[str], list[str]]] = {
    "vary": (_vary, ["picture"], ["n", "spread"]),
    "interpolate": (_interpolate, ["a", "b"], ["n"]),
}


def parser(verb: str) -> Parser:
    made = Parser(prog=f"unclip {verb}", description=__doc__)
    VERBS[verb][0](made)
    made.add_argument("-o", "--output", type=Path, help="file to write (default: the words of what is given)")
    cli.add_overwrite(made)
    add_model(made)
    add_options(made)
    return made


def main(argv: list[str]) -> int:
    """Entry point, of a verb and its arguments; returns the exit code."""
    verb, start = argv[0], time.perf_counter()
    args = parser(verb).parse_args(argv[1:])

    def work() -> None:
        output = _output(verb, args)
        cli.check_png(output, args.overwrite)
        from ..data.images import save_png

        pictures = draw(verb, args)
        save_png(cli.sheet(pictures, columns=4 if verb == "vary" else len(pictures)), output)
        print(f"{output}  (model {args.model}, seed {args.seed}, {time.perf_counter() - start:.1f} s)")

    return cli.run(f"unclip {verb}", work)


def draw(verb: str, args: argparse.Namespace) -> list[Image]:
    """The pictures of a verb; its files are looked at before the model is loaded."""
    from ..pipeline.edits import end_of

    _, names, more = VERBS[verb]
    given = [end_of(getattr(args, name), text=verb == "interpolate") for name in names]
    pipeline: Pipeline = cli.loaded(args)
    asked = {name: value for name, value in options_from(args).items() if value is not None}
    return getattr(pipeline, verb)(
        *given,
        **{name: getattr(args, name) for name in more},
        seed=args.seed,
        progress=cli.progress(),
        **asked,
    )


def _output(verb: str, args: argparse.Namespace) -> Path:
    names = [words(Path(getattr(args, name)).stem) for name in VERBS[verb][1]]
    default = Path(f"{'-'.join([*names, verb])[:200]}.png")
    return args.output or (default if args.overwrite else cli.unused(default))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
