"""How a pipeline is asked to draw: its options, and the checks of what it is called with."""

from __future__ import annotations

from pydantic import Field

from .config import Config
from .stages import SamplerName, Steps


class Options(Config):
    """How pictures are drawn; None = what the model was tuned for."""

    guidance_scale: float | None = Field(None, ge=0)  # decoder; 1 = none, more = more literal
    prior_guidance_scale: float | None = Field(None, ge=0)  # prior; likewise
    clip_guidance_scale: float = Field(0.0, ge=0)  # climbs CLIP's similarity; 0 = off
    steps: Steps | None = None  # decoder's sampling steps: a number, "10,10,3,2,2", "ddim25" or "fast27"
    prior_steps: Steps | None = None
    upsampler_steps: Steps | None = None
    sampler: SamplerName | None = None  # of the decoder: ddpm, ddim, dpm++2m or heun
    negative_prompt: str | None = None  # what guidance moves away from
    class_: int | None = Field(None, ge=0)  # for a model of classes, or with a classifier
    classifier_scale: float | None = Field(None, ge=0)  # climbs the classifier's log p(class); None = 1


DEFAULTS = Options()
