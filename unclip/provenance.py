"""How a picture was made, as its PNG says it: a record in JSON under one key, and a line that viewers read.

A picture of PIL that a model drew carries its record in ``picture.info``; ``png_info`` makes text chunks of
it, ``record_of`` reads either.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from .config import Config, ConfigError, parse_config
from .files import impostor, parse_json, regular, start_of
from .version import __version__

KEY, LINE = "unclip", "parameters"  # the keys of the two text chunks
SOURCE = "unclip.file"  # of a picture's info: the name of the file that it was read from
FORMAT = 1
LONGEST = 1 << 24  # characters of a record
CELLS = 1 << 16  # pictures of a grid that are told of
Verb = Literal["generate", "inpaint", "vary", "interpolate", "edit", "redraw", "upscale"]
Name = Literal[
    "picture", "mask", "a", "b", "image_prompt", "image_embed", "spread", "strength", "source", "target"
]


class Taken(Config):
    """A picture of the user's that went into another: the file's bare name, and SHA-256 of its pixels."""

    name: str | None = Field(None, max_length=255)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Argument = Taken | float | str | list[tuple[Taken | str | None, float]]


class Record(Config):
    """How one picture was made.

    model, digest: the model's name, and of its weights and configurations.
    seed, k, n:    of the n pictures that were asked for with this seed it is number k, from 0.
    batch_size:    how many were drawn at a time; None where other prompts were drawn beside it.
    arguments:     of the verb, besides these.
    options:       the fields of ``Options`` that were asked for.
    in_force:      how each stage sampled.
    size:          width and height as it was drawn, in pixels.
    """

    format: Literal[1] = 1
    version: str = Field(__version__, max_length=64)
    model: str = Field(max_length=4096)
    digest: str = Field(pattern=r"^[0-9a-f]{12}$")
    verb: Verb
    prompt: str | None = Field(None, max_length=10_000)
    seed: int
    k: int = Field(ge=0)
    n: int = Field(ge=1)
    batch_size: int | None = Field(None, ge=1)
    arguments: dict[Name, Argument] = {}
    options: dict[str, Any] = {}
    in_force: dict[str, dict[str, Any]] = {}
    size: tuple[int, int]
    device: str = Field(max_length=64)
    dtype: str = Field(max_length=64)

    def line(self) -> str:
        """The text that viewers and galleries of this field read under ``parameters``."""
        decoder, away = self.in_force.get("decoder", {}), self.options.get("negative_prompt")
        facts = {
            "Steps": decoder.get("steps"),
            "Sampler": decoder.get("sampler"),
            "CFG scale": decoder.get("guidance_scale"),
            "Seed": self.seed,
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model hash": self.digest,
            "Model": self.model,
            "Version": f"unclip {self.version}",
        }
        last = ", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None)
        return "\n".join([self.prompt or "", *([f"Negative prompt: {away}"] if away else []), last])


class Sheet(Config):
    """How the pictures of a grid were made, row by row."""

    columns: int = Field(ge=1)
    cells: list[Record] = Field(min_length=1)


def stamp(picture: Image.Image, record: Record) -> Image.Image:
    """The picture, which carries the record from now on."""
    picture.info[KEY] = record.model_dump_json(exclude_none=True)
    return picture


def stamp_sheet(sheet: Image.Image, pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """A grid that carries the records of its pictures, if all of them have one and there are not too many.

    What all of them have in common is said once.
    """
    texts = [picture.info.get(KEY) for picture in pictures[: CELLS + 1]]
    if 0 < len(texts) <= CELLS and None not in texts:
        cells = [json.loads(text) for text in texts if text is not None]
        common = {
            key: value for key, value in cells[0].items() if all(cell.get(key) == value for cell in cells)
        }
        own = [{key: value for key, value in cell.items() if key not in common} for cell in cells]
        sheet.info[KEY] = json.dumps({"columns": columns, "common": common, "cells": own})
    return sheet


def png_info(picture: Image.Image) -> PngInfo | None:
    """The text chunks of a picture's record; None for a picture that has none of ours."""
    text = picture.info.get(KEY)
    if text is None:
        return None
    info, made = PngInfo(), parsed(text, "the picture")
    info.add_text(KEY, json.dumps(json.loads(text)))  # in ASCII
    if isinstance(made, Record):
        info.add_text(LINE, made.line())
    return info


def parsed(text: object, source: str) -> Record | Sheet:
    """A record, or those of a grid; ``ValueError`` for what is none."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"{source} says how it was made in {'too many letters' if text else 'no text'}")
    values = parse_json(text, f"the record of {source}")
    if "cells" in values:
        return _parsed_sheet(values, source)
    if values.get("format") != FORMAT:
        raise ValueError(
            f"the record of {source} is of form {values.get('format')!r:.20}, and unclip {__version__} reads "
            f"{FORMAT}: take a later version"
        )
    return parse_config(Record, values, f"the record of {source}")


def _parsed_sheet(values: Mapping[str, Any], source: str) -> Sheet:
    common, cells = values.get("common", {}), values["cells"]
    if not isinstance(common, dict) or not isinstance(cells, list) or len(cells) > CELLS:
        raise ConfigError(f"the record of {source} is no record of a grid")
    whole = [common | cell if isinstance(cell, dict) else cell for cell in cells]
    return parse_config(Sheet, {"columns": values.get("columns"), "cells": whole}, f"the record of {source}")


def record_of(picture: Image.Image | str | Path) -> Record | Sheet:
    """How a picture, of PIL or of a file, was made.

    Raises ``ValueError`` for what is no picture, has no record of ours, or one that is none.
    """
    if isinstance(picture, Image.Image):
        text, source = picture.info.get(KEY), "the picture"
    else:
        text, source = _text_of(Path(picture)), str(picture)
    if text is None:
        raise ValueError(
            f"{source} does not say how it was made: unclip did not draw it, or was told not to say"
        )
    return parsed(text, source)


def _text_of(path: Path) -> object:
    """What a PNG has under our key."""
    if reason := impostor(start_of(path)):
        raise ValueError(f"{path} is no picture: {reason}")
    try:
        with warnings.catch_warnings(), Image.open(regular(path), formats=["PNG"]) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its pixels are not decoded
            return picture.info.get(KEY)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is no PNG, and only those say how they were made") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as PIL calls broken ones
        raise ValueError(f"{path} cannot be read: {error}") from None


def taken(picture: Image.Image) -> Taken:
    """What a record says of a picture that was read."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height} ".encode())
    digest.update(picture.tobytes())
    return Taken(name=picture.info.get(SOURCE), sha256=digest.hexdigest())
