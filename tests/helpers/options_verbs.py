"""What each argument of the verbs changes (``unclip vary``, ...); ``test_options`` holds them to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from options_inference import LOADED, MODEL, PICTURE, counted, model, sampling
from programs import Program

import unclip.app.again
import unclip.app.verbs
from unclip.provenance import Record, Sheet

# Tables, laid out by hand.
# fmt: off


def verb(name: str, words: dict[str, str], options: dict, besides: dict | None = None) -> Program:
    """A verb's command, of words by argument: each goes to the method, and into the name of the file.

    A picture is i.png (4 x 4 pixels) or o.png (8 x 8), by its name; all others are texts.
    """
    pictures = {argument for argument, word in words.items() if word.endswith(".png")}

    def case(argument: str) -> tuple[list[str], dict[str, object]]:
        word = "o.png" if argument in pictures else "a car"
        named = "-".join({**words, argument: word}.values()).replace(".png", "").replace(" ", "-")
        return [word], {f"{name}.{argument}": (8, 8) if argument in pictures else word,
                        "save_png.path": Path(f"{named}-{name}.png")}

    return Program(
        partial(_main, name), {argument: [word] for argument, word in words.items()},
        {**LOADED, f"unclip.pipeline.pipeline.Pipeline.{name}": [PICTURE],
         "unclip.data.images.save_png": None},
        {**{argument: case(argument) for argument in words},
         "output": (["-o", "x.png"], {"save_png.path": Path("x.png")}),
         "overwrite": (["--overwrite"], {}),  # what is there: test_overwrite
         "metadata": (["--no-metadata"], {"save_png.metadata": False}),
         **options, **model(["--model", "other"]), **sampling(name)},
        {**{f"{name}.{argument}": (4, 4) if argument in pictures else words[argument] for argument in words},
         "save_png.image": (4, 4), **(besides or {})})


def _main(name: str, argv: list[str]) -> int:
    return unclip.app.verbs.main([name, *argv])


VERBS = {
    "vary": verb("vary", {"picture": "i.png"},
                 {"spread": (["--spread", "0.5"], {"vary.spread": 0.5}), **counted("vary")}),
    "interpolate": verb("interpolate", {"a": "i.png", "b": "a cat"}, counted("interpolate", 7)),
    "edit": verb("edit", {"picture": "i.png", "source": "a cat", "target": "a dog"},
                 {"strength": (["--strength", "0.5"], {"edit.strength": 0.5}), **counted("edit")}),
    "redraw": verb("redraw", {"picture": "i.png", "prompt": "a cat"},
                   {"strength": (["--strength", "0.5"], {"redraw.strength": 0.5}),
                    "prompt: none": ([], {"redraw.prompt": None, "save_png.path": Path("i-redraw.png")}),
                    **counted("redraw")}),
    "inpaint": verb("inpaint", {"picture": "i.png", "mask": "m.png", "prompt": "a cat"},
                    {"prompt: none": ([], {"inpaint.prompt": None, "save_png.path": Path("i-m-inpaint.png")}),
                     **counted("inpaint")}),
    "upscale": verb("upscale", {"picture": "i.png", "prompt": "a cat"},
                    {"prompt: none": ([], {"upscale.prompt": None, "save_png.path": Path("i-upscale.png")}),
                     "batch_size": (["--batch-size", "3"], {"upscale.batch_size": 3})}),
}


def record(k: int, **more: object) -> Record:
    return Record(model="icons", digest=MODEL.digest(), verb="vary", seed=3, k=k, n=2, size=(4, 4),
                  device="cpu", dtype="float32", **more)


def fields(name: str, of: Record) -> dict[str, object]:
    return {f"{name}.{key}": value for key, value in of.model_dump(exclude_none=True).items()}


def _made(name: str, argv: list[str]) -> int:
    return unclip.app.again.main([name, *argv])


AGAIN = Program(
    partial(_made, "again"), {"picture": ["i.png"]},
    {**LOADED, "unclip.provenance.record_of": Sheet(columns=2, cells=[record(0), record(1)]),
     "unclip.app.again._sources": {}, "unclip.app.again.drawn": [PICTURE],
     "unclip.data.images.save_png": None},
    {"picture": (["o.png"], {"record_of.picture": Path("o.png"), "save_png.path": Path("o-again.png")}),
     "output": (["-o", "x.png"], {"save_png.path": Path("x.png")}),
     "overwrite": (["--overwrite"], {}),  # what is there: test_overwrite
     "metadata": (["--no-metadata"], {"save_png.metadata": False}),
     "cell": (["--cell", "2"], {"drawn.records": [record(1)], "_sources.record.k": 1}),
     "image": (["--image", "o.png", "--image", "m.png"], {"_sources.files": [Path("o.png"), Path("m.png")]}),
     "anyway": (["--anyway"], {"drawn.anew": True}),
     **model(["--model", "other"]),
     **{name: sampling("")[name]
        for name in ("prior", "classifier", "weaker", "device", "dtype", "offload")}},
    {"drawn.pipeline": MODEL, "drawn.sources": {}, "drawn.records": [record(0), record(1)],
     "_sources.near": Path("."), "at_size.size": 4, "save_png.image": (4, 4),
     **fields("_sources.record", record(0))})
INFO = Program(
    partial(_made, "info"), {"picture": ["i.png"]},
    {"unclip.provenance.record_of": record(0), "unclip.app.again.described": "words"},
    {"picture": (["o.png"], {"record_of.picture": Path("o.png")}),
     "json": (["--json"], dict.fromkeys(fields("described.made", record(0))))},
    fields("described.made", record(0)))
PROGRAMS = {"unclip/app/verbs.py": list(VERBS.values()), "unclip/app/again.py": [AGAIN, INFO]}
