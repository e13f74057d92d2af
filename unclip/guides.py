"""Guides: what a decoder climbs besides its own prediction; CLIP, a CLIP of noised pictures, a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .clip import Clip
from .diffusion import guidance
from .options import Options
from .prompts import Prompts
from .stages.stage import Objective

if TYPE_CHECKING:
    from .pipeline import Pipeline


def guides(pipeline: Pipeline, text: Prompts | None, classes: Tensor | None, options: Options
           ) -> tuple[Objective | None, guidance.GradFn | None]:
    """For ``Decoder.sample``: an objective of pictures, and a gradient of noised ones; None = none."""
    objective, climbs = None, []
    if options.clip_guidance_scale and text is not None:
        if pipeline.guide is not None:
            climbs.append(pipeline.guide.climb(text.texts, options.clip_guidance_scale))
        else:
            objective = similarity(pipeline.clip, text, options.clip_guidance_scale)
    if pipeline.classifier is not None and classes is not None:
        scale = options.classifier_scale
        scale = pipeline.classifier.config.scale if scale is None else scale
        climbs += [pipeline.classifier.climb(classes, scale)] if scale else []
    return objective, guidance.together(*climbs)


def guiding(pipeline: Pipeline, classes: Tensor | None, options: Options) -> list[nn.Module]:
    """The networks that ``guides`` will call."""
    found = []
    if options.clip_guidance_scale:
        found.append(pipeline.clip if pipeline.guide is None else pipeline.guide)
    if pipeline.classifier is not None and classes is not None:
        found.append(pipeline.classifier)
    return found


def similarity(clip: Clip, text: Prompts, scale: float) -> Objective:
    """CLIP's log-probability of the text given a picture, up to a constant (GLIDE, eq. 6)."""
    def objective(picture: Tensor) -> Tensor:
        return scale * clip.logit_scale * (clip.encode_image(picture) * text.clip.embed).sum(-1)
    return objective
