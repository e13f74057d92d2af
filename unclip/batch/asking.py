"""What a row asks for: a prompt, or what is done with a picture, with options of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..config import ConfigError, parse_config
from ..options import Options, checked_text
from ..pipeline import edits
from ..pipeline.canvas import SUFFIXES
from ..pipeline.drawing import Drawing
from ..pipeline.request import Wish, wish_of
from .reading import Row, Unusable

Verb = Literal["generate", "inpaint", "vary", "interpolate", "edit", "redraw", "upscale"]
NEEDS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "inpaint": ("image", "mask"),
    "vary": ("image",),
    "interpolate": ("a", "b"),
    "edit": ("image", "source", "target"),
    "redraw": ("image",),
    "upscale": ("image",),
}
MAY: dict[str, tuple[str, ...]] = {
    "generate": ("prompt", "n"),
    "inpaint": ("prompt", "n"),
    "vary": ("spread", "n"),
    "interpolate": ("n",),
    "edit": ("strength", "n"),
    "redraw": ("prompt", "strength", "n"),
    "upscale": ("prompt",),
}
# Of a request in OpenAI's batches, and of no effect here, as in ``unclip serve``.
OF_OPENAI = (
    "model",
    "user",
    "quality",
    "style",
    "response_format",
    "output_format",
    "background",
    "moderation",
)


class Ask(Options):
    """A row: fields of ``Options``, and these.

    id:   the user's own name for it, which the index repeats (OpenAI's ``custom_id``).
    image, mask, a, b: files, from the folder of prompts on; a and b may be texts.
    """

    id: str | None = Field(None, max_length=512)
    verb: Verb = "generate"
    prompt: str | None = None
    n: int | None = Field(None, ge=1, le=10_000)
    seed: int | None = None
    image: str | None = None
    mask: str | None = None
    a: str | None = None
    b: str | None = None
    source: str | None = None
    target: str | None = None
    spread: float = Field(1.0, ge=0, le=1)
    strength: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _verb_has_what_it_needs(self) -> Ask:
        for name in NEEDS[self.verb]:
            if getattr(self, name) is None:
                raise ValueError(f"to {self.verb} needs {name}")
        taken = {*NEEDS[self.verb], *MAY[self.verb]}
        for name in {one for ones in (*NEEDS.values(), *MAY.values()) for one in ones} - taken:
            if name in self.model_fields_set and getattr(self, name) is not None:
                raise ValueError(f"to {self.verb} takes no {name}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The fields of ``Options`` that the row has."""
        return {name: getattr(self, name) for name in Options.model_fields if name in self.model_fields_set}

    @property
    def named(self) -> str:
        """The words that its files are named by."""
        texts = (self.prompt, self.target, self.image and Path(self.image).stem, self.a)
        return next((text for text in texts if text), self.verb)

    @property
    def digest(self) -> str:
        """Of all that its pictures depend on, but for how many there are."""
        values = self.model_dump(mode="json", exclude={"n", "id"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


COLUMNS = tuple(name.rstrip("_") for name in Ask.model_fields) + ("custom_id",)


def ask_of(row: Row, defaults: Mapping[str, Any], folder: Path, size: int) -> Ask:
    """What a row asks for; the options of ``defaults`` where it has none.

    folder: that its pictures lie in, and not outside. size: of the model's pictures.

    Raises ``Unusable`` for a row that is none, in words.
    """
    if isinstance(row.values, Unusable):
        raise row.values
    values = {name: value for name, value in _plain(row.values, size).items() if value not in (None, "")}
    try:
        ask = parse_config(Ask, {**defaults, **values}, "the row")
        for name in ("prompt", "source", "target"):
            if getattr(ask, name) is not None:
                checked_text(getattr(ask, name), name)
        if ask.verb == "generate" and ask.prompt is not None and not ask.prompt.strip():
            raise Unusable("the prompt is empty")
        for name in ("image", "mask", "a", "b"):
            _check_inside(name, getattr(ask, name), folder)
    except ConfigError as error:
        raise Unusable("; ".join(line.strip() for line in str(error).splitlines()[1:])) from None
    except ValueError as error:
        raise Unusable(str(error)) from None
    return ask


def _plain(values: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The fields by our names, of a request of OpenAI's batches, too."""
    values = {("class_" if name == "class" else name): value for name, value in values.items()}
    if "custom_id" in values:
        values["id"] = values.pop("custom_id")
    if isinstance(body := values.pop("body", None), Mapping):
        address = str(values.pop("url", "/v1/images/generations"))
        values.pop("method", None)
        if not address.endswith("/images/generations"):
            raise Unusable(f"url {address:.80} is not /v1/images/generations, and is not drawn here")
        asked = body.get("size", "auto")
        if asked not in ("auto", f"{size}x{size}", None):
            raise Unusable(f"size {asked!r:.40} is not {size}x{size}, which the model draws")
        values |= {name: value for name, value in body.items() if name not in (*OF_OPENAI, "size")}
    return values


def _check_inside(name: str, value: str | None, folder: Path) -> None:
    """Refuse a file that is not in the folder, wherever links lead."""
    if value is None or name in ("a", "b") and Path(value).suffix.lower() not in SUFFIXES:
        return
    if "\0" in value or not (folder / value).resolve().is_relative_to(folder.resolve()):
        raise Unusable(f"{name} {value!r:.200} leads out of the folder of prompts; put the picture into it")
    if not (folder / value).is_file():
        raise Unusable(f"{name}: there is no file {folder / value}")


def wish_for(
    pipeline: Drawing, ask: Ask, n: int, seed: int, folder: Path, only: list[int] | None = None
) -> Wish:
    """The pictures of a row as one wish; ``ValueError`` for what the model cannot do. Not to upscale.

    n, seed: of a row that has none of its own. only: some of them.
    """
    n, seed, options = ask.n or n, seed if ask.seed is None else ask.seed, {**ask.options, "only": only}
    image = None if ask.image is None else folder / ask.image
    if ask.verb in ("generate", "inpaint"):
        mask = None if ask.mask is None else folder / ask.mask
        return wish_of(pipeline, ask.prompt, n=n, seed=seed, image=image, mask=mask, **options)
    if ask.verb == "interpolate":
        a, b = (
            folder / one if Path(one).suffix.lower() in SUFFIXES else one
            for one in (ask.a or "", ask.b or "")
        )
        return edits.interpolate(pipeline, a, b, n, seed, **options)
    assert image is not None
    if ask.verb == "vary":
        return edits.vary(pipeline, image, n, ask.spread, seed, **options)
    strength = ask.strength
    if ask.verb == "edit":
        source, target = str(ask.source), str(ask.target)
        return edits.edit(
            pipeline, image, source, target, 0.3 if strength is None else strength, n, seed, **options
        )
    return edits.redraw(
        pipeline, image, ask.prompt, 0.6 if strength is None else strength, n, seed, None, **options
    )
