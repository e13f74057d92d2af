"""Pictures that say how they were made: ``unclip again`` draws one once more, ``unclip info`` prints it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import Parser
from ..models import shipped_models
from ..version import __version__
from . import cli
from .options import add_device, add_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline.pipeline import Pipeline
    from ..provenance import Record, Sheet, Taken

AGAIN = """Draw a picture again, as it says that it was made.

unclip again goldfish.png
unclip again sheet.png --cell 3 -o third.png

On the same machine, with the same versions, the file is the same to the byte. Pictures that it was made from
are looked for by their names beside it and here, or given by --image; they are told by their pixels."""
INFO = "Print how a picture was made.\n\nunclip info goldfish.png"


def parser() -> Parser:
    parser = Parser(prog="unclip again", description=AGAIN)
    add = parser.add_argument
    add("picture", type=Path, help="a PNG that unclip has drawn")
    add("-o", "--output", type=Path, help="file to write (default: its name, -again.png)")
    cli.add_overwrite(parser)
    cli.add_metadata(parser)
    add("--cell", type=int, metavar="K", help="of a grid this picture alone, counted from 1")
    add(
        "--image",
        type=Path,
        action="append",
        metavar="FILE",
        help="a picture that it was made from; again for more",
    )
    add(
        "--model",
        help="the model, if it does not come with the package; nothing is fetched unless you name it",
    )
    add("--anyway", action="store_true", help="draw it with another version or model than it says")
    add("--prior", metavar="PRIOR", help="another prior, if one was named")
    add("--classifier", type=Path, metavar="FILE", help="of noised pictures, if one led it")
    add("--weaker", type=Path, metavar="FILE", help="a weaker decoder, if it was led away from one")
    add_device(parser)
    add_memory(parser)
    parser.set_defaults(dtype=None, size=None)
    return parser


def info_parser() -> Parser:
    parser = Parser(prog="unclip info", description=INFO)
    parser.add_argument("picture", type=Path, help="a PNG that unclip has drawn")
    parser.add_argument("--json", action="store_true", help="print the record as it stands in the file")
    return parser


def again(args: argparse.Namespace) -> tuple[Path, str]:
    """Draw what the command line asks for; returns the file, and how its pixels compare."""
    from ..data.images import save_png
    from ..pipeline.canvas import opened
    from ..provenance import Sheet, record_of

    output = args.output or args.picture.with_name(f"{args.picture.stem}-again.png")
    output = output if args.output or args.overwrite else cli.unused(output)
    cli.check_png(output, args.overwrite)
    made = record_of(args.picture)
    records = _chosen(made, args.cell)
    _check_version(records[0], args.anyway)
    sources = _sources(records[0], args.picture.parent, args.image or [])
    pipeline = _loaded(records[0], args)
    before = opened(args.picture).convert("RGB") if args.cell is None else None
    if isinstance(made, Sheet) and args.cell is None:
        picture = cli.sheet(drawn(pipeline, records, sources, args.anyway), made.columns)
    else:
        (picture,) = drawn(pipeline, records, sources, args.anyway)
        if before is not None and _apart(before, picture) and records[0].batch_size is not None:
            (picture,) = drawn(pipeline, records, sources, args.anyway, beside=True)
    save_png(picture, output, args.metadata)
    return output, "" if before is None else _compared(_apart(before, picture))


def drawn(
    pipeline: Pipeline,
    records: Sequence[Record],  # of one call, so that only k differs
    sources: Mapping[str, Image],  # pictures of the user's, by their sums
    anew: bool,  # whether each is recorded as it is made now, and not as it was
    beside: bool = False,  # of one picture: whether those are drawn, too, that were drawn together with it
) -> list[Image]:
    """The pictures of records, drawn again."""
    from ..provenance import stamp

    first, ks = records[0], [record.k for record in records]
    size = first.batch_size or 16
    only = list(range(ks[0] // size * size, min(first.n, ks[0] // size * size + size))) if beside else ks
    arguments: dict[str, Any] = {name: _given(value, sources) for name, value in first.arguments.items()}
    if first.prompt is not None:
        arguments["prompt"] = first.prompt
    if first.verb != "upscale":
        arguments |= {"n": first.n, "only": None if only == list(range(first.n)) else only}
    pictures = getattr(pipeline, first.verb)(
        seed=first.seed, batch_size=size, progress=cli.progress(), **arguments, **first.options
    )
    pictures = pictures if isinstance(pictures, list) else [pictures]
    pictures = [pictures[only.index(k)] for k in ks]
    if anew:
        return pictures
    return [stamp(picture, record) for picture, record in zip(pictures, records, strict=True)]


def _chosen(made: Record | Sheet, cell: int | None) -> list[Record]:
    """The records to be drawn; ``ValueError`` for a cell that is none, and for grids of several calls."""
    from ..provenance import Record

    if isinstance(made, Record):
        if cell not in (None, 1):
            raise ValueError(f"--cell {cell} is of a grid, and this is one picture")
        return [made]
    if cell is not None:
        if not 1 <= cell <= len(made.cells):
            raise ValueError(f"the grid has pictures 1 to {len(made.cells)}, and no --cell {cell}")
        return [made.cells[cell - 1]]
    if len({one.model_copy(update={"k": 0}).model_dump_json() for one in made.cells}) > 1:
        raise ValueError("the pictures of this grid were asked for one by one; draw each again by its --cell")
    if (
        len({one.k for one in made.cells}) < len(made.cells)
        or max(one.k for one in made.cells) >= made.cells[0].n
    ):
        raise ValueError("the record of this grid names pictures that it cannot hold")
    return made.cells


def _check_version(record: Record, anyway: bool) -> None:
    if record.version != __version__ and not anyway:
        raise ValueError(
            f"it was drawn by unclip {record.version}, and this is {__version__}, which may draw another "
            "picture; install that version, or give --anyway"
        )
    if "image_embed" in record.arguments:
        raise ValueError("it was drawn from an embedding that somebody brought along, which no picture holds")


def _loaded(record: Record, args: argparse.Namespace) -> Pipeline:
    """The model of a record; ``ValueError`` for another one, and for one that only its name says."""
    if args.model is None and record.model not in shipped_models():
        raise ValueError(f"it was drawn by the model {record.model!r:.200}; say where that is by --model")
    args.model = args.model or record.model
    args.dtype = args.dtype or (record.dtype if record.dtype in ("float32", "bfloat16") else "float32")
    pipeline = cli.loaded(args)
    if record.verb != "upscale" and record.size != (pipeline.size,) * 2:
        with suppress(ValueError):  # of another model, as its digest says
            pipeline.at_size(record.size[0])
    if pipeline.digest() != record.digest and not args.anyway:
        raise ValueError(
            f"it was drawn by a model {record.model!r:.200} with the digest {record.digest}, and this one's "
            f"is {pipeline.digest()}: find the weights that it was drawn with, or give --anyway"
        )
    return pipeline


def _sources(record: Record, near: Path, files: Sequence[Path]) -> dict[str, Image]:
    """The pictures that a record names, by their sums: of ``files``, or of their names in the folder ``near``
    and in this one. ``ValueError`` for one that is not found.
    """
    from ..pipeline.canvas import opened
    from ..provenance import taken

    given = {taken(image).sha256: image for image in map(opened, files)}
    for what in _taken(record):
        name = what.name
        bare = name is not None and Path(name).name == name and "\0" not in name
        for folder in (near, Path(".")):
            if what.sha256 not in given and bare and (folder / str(name)).is_file():
                image = opened(folder / str(name))
                given[taken(image).sha256] = image
        if what.sha256 not in given:
            which = f"the picture {name!r}" if name else "a picture"
            raise ValueError(
                f"it was made from {which} (pixels {what.sha256[:12]}), which is not here as it was then; "
                "give the file by --image"
            )
    return given


def _taken(record: Record) -> list[Taken]:
    from ..provenance import Taken

    parts = [part for value in record.arguments.values() if isinstance(value, list) for part, _ in value]
    return [one for one in (*record.arguments.values(), *parts) if isinstance(one, Taken)]


def _given(value: object, sources: Mapping[str, Image]) -> object:
    """An argument of a record, with the pictures that it stands for in their place."""
    from ..provenance import Taken

    if isinstance(value, Taken):
        return sources[value.sha256]
    if isinstance(value, list):
        return [(_given(part, sources), weight) for part, weight in value]
    return value


def _apart(before: Image, after: Image) -> int:
    """How far two pictures are from each other, at most, of 255."""
    import numpy as np

    if before.size != after.size:
        return 255
    return int(np.abs(np.asarray(before, dtype=np.int16) - np.asarray(after, dtype=np.int16)).max())


def _compared(apart: int) -> str:
    if apart == 0:
        return "the same pixels"
    return f"up to {apart} of 255 from what it was: another processor, thread count or library rounds so"


def described(made: Record | Sheet) -> str:
    """What a picture says, for people."""
    from ..provenance import Sheet

    if isinstance(made, Sheet):
        return "\n\n".join(
            f"picture {number}\n{described(cell)}" for number, cell in enumerate(made.cells, 1)
        )
    facts: dict[str, object] = {"prompt": made.prompt, "verb": made.verb}
    for name, value in made.arguments.items():
        facts[name] = value if isinstance(value, float | str) else _named(value)
    facts |= {"seed": made.seed, "number": f"{made.k + 1} of {made.n}", **made.options}
    facts |= {"model": f"{made.model} {made.digest}", "unclip": made.version}
    facts |= {"size": f"{made.size[0]} x {made.size[1]}", "on": f"{made.device}, {made.dtype}"}
    for stage, values in made.in_force.items():
        facts[stage] = ", ".join(f"{name} {value}" for name, value in values.items())
    return "\n".join(f"{name.rstrip('_'):<22} {value}" for name, value in facts.items() if value is not None)


def _named(value: object) -> str:
    from ..provenance import Taken

    if isinstance(value, list):
        return ", ".join(
            f"{'the prompt' if part is None else _named(part)} ({weight:g})" for part, weight in value
        )
    return (
        f"{value.name or 'a picture'} (pixels {value.sha256[:12]})"
        if isinstance(value, Taken)
        else str(value)
    )


def main(argv: list[str]) -> int:
    """Entry point, of "again" or "info" and its arguments; returns the exit code."""
    start = time.perf_counter()
    if argv[0] == "info":
        asked = info_parser().parse_args(argv[1:])

        def show() -> None:
            from ..provenance import record_of

            made = record_of(asked.picture)
            print(made.model_dump_json(exclude_none=True, indent=1) if asked.json else described(made))

        return cli.run("unclip info", show)
    args = parser().parse_args(argv[1:])

    def work() -> None:
        output, compared = again(args)
        compared = f"{compared}, " if compared else ""
        print(f"{output}  ({compared}{time.perf_counter() - start:.1f} s)")

    return cli.run("unclip again", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
