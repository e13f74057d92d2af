"""How a pipeline is asked to draw. Imports no PyTorch, so that a command line is there at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypedDict
from unicodedata import category

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from .config import Config, Factor


def _as_in_stages(name: str) -> Callable[[object], object]:
    """The check of a type of ``stages``, which is imported when there is a value to check."""

    def check(value: object) -> object:
        from . import stages

        (rule,) = getattr(stages, name).__metadata__
        return rule.func(value)

    return check


Steps = Annotated[int | str, BeforeValidator(_as_in_stages("Steps"))]
Interval = Annotated[tuple[float, float], BeforeValidator(_as_in_stages("Interval"))]
APG = Annotated[tuple[float, float, float], BeforeValidator(_as_in_stages("APG"))]
SamplerName = Annotated[str, AfterValidator(_as_in_stages("SamplerName"))]
LONGEST = 10_000  # characters of a prompt; a context holds some hundreds


def checked_text(text: str, what: str = "a prompt") -> str:
    """The text, if it is one that can be drawn; ``ValueError`` for control marks, and for too much of it."""
    if len(text) > LONGEST:
        raise ValueError(f"{what} has {len(text):,} characters; {LONGEST:,} are the most that is read")
    for mark in text:  # Cc: control marks, such as a zero byte; Cs: halves of a character
        if category(mark) in ("Cc", "Cs") and not mark.isspace():
            raise ValueError(f"{what} holds {mark!r}, which is no character of a text")
    return text


class Options(Config):
    """How pictures are drawn; None = what the model was tuned for."""

    steps: Steps | None = Field(
        None, description="sampling steps of the decoder: 24, 10,10,3,2,2, ddim25 or fast27"
    )
    prior_steps: Steps | None = Field(None, description="sampling steps of the prior")
    upsampler_steps: Steps | None = Field(None, description="sampling steps of each upsampler")
    guidance_scale: Factor | None = Field(None, description="decoder: 1 = none, more = more literal")
    guidance_interval: Interval | None = Field(
        None, description="decoder: shares of noise that are guided, such as 0.2,0.8; all by default"
    )
    apg: APG | None = Field(
        None,
        description="decoder: eta, norm, momentum of projected guidance, such as 0.5,10,0; off by default",
    )
    autoguidance_scale: Factor | None = Field(
        None, description="decoder: away from the weaker one, where there is one (default 2); 1 = off"
    )
    prior_guidance_scale: Factor | None = Field(None, description="prior: likewise")
    clip_guidance_scale: Factor = Field(0.0, description="climb CLIP's similarity (default 0.0)")
    cutouts: int | None = Field(
        None,
        ge=1,
        le=256,
        description="random cuts of a picture that CLIP sees while it guides; else the whole",
    )
    sampler: SamplerName | None = Field(None, description="of the decoder: ddpm, ddim, dpm++2m or heun")
    negative_prompt: str | None = Field(None, description="what guidance moves away from")
    class_: int | None = Field(None, ge=0, description="what to draw, for a model of classes")
    classifier_scale: Factor | None = Field(None, description="how strongly the classifier leads (default 1)")

    resamplings: int | None = Field(
        None, ge=1, le=1000, description="to inpaint untrained: how often a step is taken (default 10)"
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_true(cls, values: object) -> object:
        """Python counts True as 1; nobody asks for True steps and means it."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{key} must be a number or a text, not {value}")
        return values

    @field_validator("negative_prompt")
    @classmethod
    def _blank_is_none(cls, text: str | None) -> str | None:
        return checked_text(text, "the negative prompt") if text and text.strip() else None


class Asked(TypedDict, total=False):
    """The fields of ``Options``, as arguments by name."""

    steps: int | str | None
    prior_steps: int | str | None
    upsampler_steps: int | str | None
    guidance_scale: float | None
    guidance_interval: str | tuple[float, float] | None
    apg: str | tuple[float, float, float] | None
    autoguidance_scale: float | None
    prior_guidance_scale: float | None
    clip_guidance_scale: float
    cutouts: int | None
    sampler: str | None
    negative_prompt: str | None
    class_: int | None
    classifier_scale: float | None
    resamplings: int | None


DEFAULTS = Options()
