"""What clients ask for: OpenAI's fields, and ours beside them, checked by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ...options import Options
from .errors import Refused

MOST = 10  # pictures of a request
PARTIALS = 50  # partial pictures of each
SIDE = 4096  # pixels of what is scaled
FLAGS = ("stream", "resize")
OTHER_NAMES = {"num_inference_steps": "steps", "class": "class_"}  # as other open servers call ours


def _at_most_one_model(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a model is named by a text")
    return value


class Asked(Options):
    """What every kind of request has. Null is the same as nothing; unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, BeforeValidator(_at_most_one_model)] = ""
    n: int = Field(1, ge=1, le=MOST)
    size: str = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(100, ge=0, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=PARTIALS)
    resize: bool | None = Field(None, description="scale to a size that the model does not draw")
    # Taken, since clients send them, and of no effect: there is one quality, and no style but the prompt's.
    user: str | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    background: Literal["auto", "opaque"] | None = None
    input_fidelity: Literal["low", "high"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_true(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        told: dict[str, Any] = {
            OTHER_NAMES.get(str(key), str(key)): value for key, value in values.items() if value is not None
        }
        for key, value in told.items():
            if isinstance(value, bool) and key not in FLAGS:
                raise ValueError(f"{key} must be a number or a text, not {value}")
        return told

    @property
    def options(self) -> dict[str, Any]:
        """The fields of ``Options`` that were asked for."""
        names = set(Options.model_fields) & self.model_fields_set
        return {name: getattr(self, name) for name in Options.model_fields if name in names}

    @property
    def as_url(self) -> bool:
        """Whether pictures are answered by their addresses: as asked, or as DALL-E does where it is named.

        A stream always holds the pictures themselves.
        """
        if self.stream:
            return False
        if self.response_format is None:
            return self.model.startswith("dall-e")
        return self.response_format == "url"

    def side(self, size: int, name: str, resize: bool) -> int:
        """Height and width of what is answered, by a model that draws ``size``; ``Refused`` by name."""
        if self.size == "auto":
            return size
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if match is None:
            raise Refused(
                f"Invalid value for 'size': {self.size!r:.40} is no size; write {size}x{size}, or auto",
                param="size",
                code="invalid_value",
            )
        width, height = int(match[1]), int(match[2])
        if width == height == size:
            return size
        if width != height or not 16 <= width <= SIDE or not (resize if self.resize is None else self.resize):
            raise Refused(
                f"Invalid value for 'size': the model {name} draws {size}x{size}, not {width}x{height}; ask "
                f"for auto, or for another square of at most {SIDE} pixels to be scaled to with resize: true",
                param="size",
                code="invalid_value",
            )
        return width


class Generation(Asked):
    """``POST /v1/images/generations``."""

    prompt: str


class Edit(Asked):
    """``POST /v1/images/edits``, besides its pictures."""

    prompt: str
    strength: float = Field(0.6, ge=0, le=1, description="of a picture without a mask: how far it is redrawn")


class Variation(Asked):
    """``POST /v1/images/variations``, besides its picture."""

    spread: float = Field(1.0, ge=0, le=1, description="from 0, the picture itself, to 1")


class Interpolation(Asked):
    """``POST /v1/images/interpolations``, besides its pictures."""

    n: int = Field(5, ge=2, le=MOST)
    prompt: list[str] = []
