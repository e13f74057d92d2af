"""The command ``unclip "a goldfish"``: draws a picture and says where it is. Its first word may be a verb:
``unclip batch``, ``serve``, ``again``, ``info``, one of ``verbs.VERBS``, or ``unclip draw`` for a prompt that
is one of these.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..command_line import Parser
from ..files import words
from ..models import DEFAULT_MODEL, shipped_models
from . import cli, verbs
from .options import add_model, add_options, options_from

if TYPE_CHECKING:
    from ..diffusion.samplers import Step
    from ..pipeline.canvas import Picture

STRIPS = 64  # pictures of which --strip shows how they came about


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="unclip",
        description="Draw pictures of a text.",
        epilog="unclip batch LINES FOLDER draws a picture for every line of a file; unclip serve draws for "
        "programs and\nbrowsers; unclip info says how a picture was made, unclip again makes it once more; "
        "from pictures start\n"
        f"{', '.join(f'unclip {verb}' for verb in verbs.VERBS)}; each has a --help.\n"
        'A prompt that is such a word is drawn by unclip draw: unclip draw "batch"',
    )
    add = parser.add_argument
    add("prompt", nargs="?", help='what to draw, such as "a goldfish"')
    add("-o", "--output", type=Path, help="file to write (default: the prompt's words, .png; or -2.png, ...)")
    cli.add_overwrite(parser)
    cli.add_metadata(parser)
    add("-n", type=int, default=1, metavar="N", help="number of pictures, as one grid (default 1)")
    add(
        "--strip",
        type=Path,
        metavar="FILE",
        help="write there how it came out of the noise: a film strip "
        "of the decoder's steps, x_t above and the predicted picture below",
    )
    add("--columns", type=int, default=8, metavar="N", help="steps that the strip shows (default 8)")
    add("--image", type=Path, metavar="FILE", help="a picture, of which a model that inpaints paints a part")
    add("--mask", type=Path, metavar="FILE", help="which part: a picture of its size, white = painted anew")
    add(
        "--image-prompt",
        action="append",
        nargs="+",
        metavar=("WHAT", "WEIGHT"),
        help="file of a picture, or a text, to be drawn in place of the prompt or mixed with it, and its "
        "weight (default 1, which is the prompt's); again for more of them",
    )
    add_model(parser)
    add_options(parser)
    add(
        "--plan",
        action="store_true",
        help="print what the model takes of memory, a stage, and end; nothing is fetched",
    )
    add("--models", action="store_true", help="list the models that are known by name, and end")
    add("--version", action="version", version=f"unclip {__version__}")
    return parser


def draw(args: argparse.Namespace) -> Path:
    """Draw what the command line asks for; returns the picture's file."""
    from ..data.images import save_png
    from ..pipeline.canvas import opened

    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw, for example: a goldfish")
    prompts = args.image_prompt or []
    named = args.prompt or " ".join(Path(what).stem for what, *_ in prompts) or args.model
    default = Path(f"{words(named)}.png")
    output = args.output or (default if args.overwrite else cli.unused(default))
    _check_files(args, output)
    files = {"image": args.image, "mask": args.mask}
    more: dict[str, Any] = {name: opened(file) for name, file in files.items() if file is not None}
    if prompts:
        more["image_prompt"] = [_weighted(*one) for one in prompts]
    pipeline = cli.loaded(args)
    frames: list[Step] = []
    if args.strip:
        more |= {"watch": frames.append, "batch_size": args.n}  # one batch: a strip of every picture
    drawn = pipeline.generate(
        args.prompt, n=args.n, seed=args.seed, **options_from(args), **more, progress=cli.progress()
    )
    save_png(cli.sheet(drawn) if isinstance(drawn, list) else drawn, output, args.metadata)
    if args.strip:
        from .strip import film_strip

        save_png(film_strip(frames, args.columns), args.strip)
    return output


def _weighted(what: str, weight: str = "1", *more: str) -> tuple[Picture, float]:
    """A part of --image-prompt, its file opened; ``ValueError`` if more is said than a weight."""
    from ..pipeline.canvas import end_of

    try:
        number = float(weight)
    except ValueError:
        more = (weight, *more)
    if more:
        raise ValueError(
            f"--image-prompt takes a file or a text, and then a weight or none, not {more[0]!r}; the prompt "
            "goes before it"
        )
    return end_of(what), number


def _check_files(args: argparse.Namespace, output: Path) -> None:
    """Find out now what cannot be written."""
    for file in (output, args.strip) if args.strip else (output,):
        cli.check_png(file, args.overwrite)
    if args.strip and args.n > STRIPS:
        raise ValueError(f"--strip shows at most {STRIPS} pictures, which are drawn at once, not {args.n:,}")
    if args.columns < 1:
        raise ValueError(f"--columns must be at least 1, not {args.columns}")
    if args.strip and args.strip.resolve() == output.resolve():
        raise ValueError(f"{output} is the picture's file; name another for --strip")


def _models() -> str:
    from ..convert.catalogue import MODELS, PRIORS

    rows = [(name, "comes with the package", "MIT") for name in shipped_models()]
    rows += [(model.name, model.about, model.licence.name) for model in MODELS.values()]
    rows += [(f"--prior {one.name}", one.about, one.licence.name) for one in PRIORS.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {about:<{widths[1]}}  {licence}" for name, about, licence in rows)


def _plan(args: argparse.Namespace) -> str:
    from ..plan import plan

    return str(plan(args.model, args.dtype, args.n, args.size))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    start = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["batch"]:
        from . import batch

        return batch.main(argv[1:])
    if argv[:1] == ["serve"]:
        from . import serve

        return serve.main(argv[1:])
    if argv[:1] in (["again"], ["info"]):
        from . import again

        return again.main(argv)
    if argv and argv[0] in verbs.VERBS:
        return verbs.main(argv)
    argv = argv[1:] if argv[:1] == ["draw"] else argv
    args = parser().parse_args(argv)
    if args.models:
        return cli.run("unclip", lambda: print(_models()))
    if args.plan:
        return cli.run("unclip", lambda: print(_plan(args)))
    if args.prompt is None and not args.image_prompt and args.model == DEFAULT_MODEL:
        parser().print_help()
        return 2

    def work() -> None:
        output = draw(args)
        print(f"{output}  (model {args.model}, seed {args.seed}, {time.perf_counter() - start:.1f} s)")

    return cli.run("unclip", work)


if __name__ == "__main__":
    sys.exit(main())
