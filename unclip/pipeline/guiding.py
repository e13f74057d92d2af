"""Guides: what a decoder climbs besides its own prediction; CLIP, a CLIP of noised pictures, a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..diffusion import guidance
from ..guides.similarity import similarity
from ..options import Options
from ..stages.stage import Objective
from .prompts import Prompts, needed

if TYPE_CHECKING:
    from .model import Model


def guides(
    model: Model, text: Prompts | None, classes: Tensor | None, options: Options
) -> tuple[Objective | None, guidance.GradFn | None]:
    """For ``Decoder.sample``: an objective of pictures, and a gradient of noised ones; None = none."""
    objective: Objective | None = None
    climbs: list[guidance.GradFn] = []
    if options.clip_guidance_scale and text is not None:
        if model.guide is not None:
            climbs.append(model.guide.climb(text.texts, options.clip_guidance_scale))
        else:
            words = needed(text.clip, "its CLIP").embed
            objective = similarity(needed(model.clip, "its CLIP"), words, options.clip_guidance_scale)
    if model.classifier is not None and classes is not None:
        scale = options.classifier_scale
        scale = model.classifier.config.scale if scale is None else scale
        climbs += [model.classifier.climb(classes, scale)] if scale else []
    return objective, guidance.together(*climbs)


def guiding(model: Model, classes: Tensor | None, options: Options) -> list[nn.Module | None]:
    """The networks that ``guides`` will call."""
    networks: list[nn.Module | None] = []
    if options.clip_guidance_scale:
        networks.append(model.clip if model.guide is None else model.guide)
    if model.classifier is not None and classes is not None:
        networks.append(model.classifier)
    return networks
