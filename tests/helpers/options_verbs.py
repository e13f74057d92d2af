"""What each argument of the verbs changes (``unclip vary``, ...); ``test_options`` holds them to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from options_inference import LOADED, PICTURE, counted, model, sampling
from programs import Program

import unclip.app.verbs

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
PROGRAMS = {"unclip/app/verbs.py": list(VERBS.values())}
