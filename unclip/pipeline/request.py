"""What a pipeline is asked for, and what it refuses before work starts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..options import Options
from ..stages import Sampling

if TYPE_CHECKING:
    from .model import Model


def prompts_of(model: Model, prompt: str | Sequence[str] | None) -> list[str | None]:
    """The prompts as a list, [None] for a model that takes none; ``ValueError`` for what is no text."""
    if not model.takes_prompt:
        if prompt is not None:
            raise ValueError(f"the model {model.name} takes no prompt")
        return [None]
    several = isinstance(prompt, Iterable) and not isinstance(prompt, str)
    given = list(prompt) if several else [prompt]
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {text!r}")
        if not text.strip():
            raise ValueError("the prompt is empty; say what to draw, for example: a goldfish")
    return given


def check_request(model: Model, options: Options, inpaints: bool) -> None:
    """Refuse, before work starts, what would do nothing or cannot be done; raises ``ValueError``."""
    _negative(model, options)
    class_asked(model, options)
    if options.class_ is None:
        for stage in model.picture_stages:
            if stage.takes_class and not stage.config.drop_class:
                raise ValueError(
                    f"the model {model.name} knows no picture without a class: ask for one "
                    f"of 0 to {stage.config.net.classes - 1} (class_, or --class)"
                )
    sees = model.guide is not None or model.clip is not None and model.clip.image_size is not None
    if options.clip_guidance_scale and not (model.takes_prompt and sees):
        raise ValueError(
            f"the model {model.name} holds no CLIP that knows pictures, which clip_guidance_scale needs"
        )
    if inpaints and not model.decoder.config.inpaint:
        raise ValueError(
            f"the model {model.name} cannot inpaint: it takes no image and mask; one that "
            "does is glide-inpaint"
        )


def _negative(model: Model, options: Options) -> None:
    if not options.negative_prompt:
        return
    if not model.takes_prompt:
        raise ValueError(f"the model {model.name} takes no prompt, nor a negative one")
    asked = [(model.decoder, options.guidance_scale), (model.prior, options.prior_guidance_scale)]
    scales = [
        stage.config.sampling.guidance_scale if scale is None else scale
        for stage, scale in asked
        if stage is not None
    ]
    if all(scale == 1 for scale in scales):
        raise ValueError(
            "negative_prompt is what guidance moves away from, and there is no guidance: "
            "give a guidance_scale other than 1"
        )


def class_asked(model: Model, options: Options) -> int | None:
    """The class that is asked for; ``ValueError`` if the model does not know it."""
    if options.classifier_scale is not None and model.classifier is None:
        raise ValueError("classifier_scale needs a classifier; Pipeline.guide_with takes one")
    if options.class_ is None:
        return None
    if not model.classes:
        raise ValueError(f"the model {model.name} takes no class")
    if options.class_ >= model.classes:
        raise ValueError(f"the classes of {model.name} are 0 to {model.classes - 1}, not {options.class_}")
    return options.class_


def override(sampling: Sampling, **changes: object) -> Sampling:
    """A stage's defaults with the changes that are not None."""
    return sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})


def integer(name: str, value: object, least: int | None = None) -> int:
    """An argument that must be a whole number; ``ValueError`` names it if it is none, or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number
