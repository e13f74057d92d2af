"""Guides: what a decoder climbs besides its own prediction; CLIP, a CLIP of noised pictures, a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..diffusion import guidance
from ..diffusion.noise import Noise, fold
from ..guides.similarity import Cutouts, similarity
from ..options import Options
from ..stages.stage import Objective
from .prompts import needed

if TYPE_CHECKING:
    from .model import Model
    from .request import Wish

CUTOUTS = 2  # what parts their random numbers from those of other stages


def guides(
    model: Model, wish: Wish, classes: Tensor | None
) -> tuple[Objective | None, guidance.GradFn | None]:
    """For ``Decoder.sample``: an objective of pictures, and a gradient of noised ones; None = none."""
    text, options = wish.text, wish.options
    objective: Objective | None = None
    climbs: list[guidance.GradFn] = []
    if options.clip_guidance_scale and text is not None:
        if model.guide is not None:
            climbs.append(model.guide.climb(text.texts, options.clip_guidance_scale))
        else:
            words = needed(text.clip, "its CLIP").embed
            clip, cuts = needed(model.clip, "its CLIP"), None
            if options.cutouts:
                cuts = Cutouts(options.cutouts, Noise([fold(seed, CUTOUTS) for seed in wish.seeds]))
            objective = similarity(clip, words, options.clip_guidance_scale, cuts)
    if model.classifier is not None and classes is not None:
        scale = options.classifier_scale
        scale = model.classifier.config.scale if scale is None else scale
        climbs += [model.classifier.climb(classes, scale)] if scale else []
    return objective, guidance.together(*climbs)


def guiding(model: Model, classes: Tensor | None, options: Options) -> list[nn.Module | None]:
    """The networks that ``guides`` will call."""
    networks: list[nn.Module | None] = [] if model.weaker is None else [model.weaker]
    if options.clip_guidance_scale:
        networks.append(model.clip if model.guide is None else model.guide)
    if model.classifier is not None and classes is not None:
        networks.append(model.classifier)
    return networks
