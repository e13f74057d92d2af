"""What a pipeline refuses before work starts, and the two small rules that it is asked by."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

from ..checkpoint import CheckpointError
from ..clip import same_weights
from ..options import Options
from ..stages import ARPrior, ARSampling, Decoder, Prior, Sampling, Stage, TextPrior

S = TypeVar("S", Sampling, ARSampling, Sampling | ARSampling)

if TYPE_CHECKING:
    from .model import Model


def prior_fits(model: Model, prior: TextPrior) -> None:
    """Raises ``CheckpointError`` for a prior of another CLIP's embeddings than the model's."""
    if model.clip is None or not model.decoder.takes_image:
        raise CheckpointError(f"the model {model.name} takes no prior: its decoder knows no image embedding")
    net, clip = prior.config.net, model.clip
    widths = {"embed_dim": clip.embed_dim, "text_dim": clip.text_dim}
    if wrong := [name for name, width in widths.items() if getattr(net, name) != width]:
        said = ", ".join(f"its {name} is {getattr(net, name)}, not {widths[name]}" for name in wrong)
        raise CheckpointError(f"the prior does not fit the model {model.name}: {said}")
    if not same_weights(prior.facts.get("clip", clip.identity), clip.identity):
        raise CheckpointError(
            f"the prior was trained with CLIP {prior.facts['clip']}, but the model holds {clip.identity}"
        )
    if model.prior is not None and model.prior.config.unit_norm != prior.config.unit_norm:
        raise CheckpointError("the prior does not fit: of the two one makes embeddings of length 1 alone")


def check_request(model: Model, options: Options, stages: Sequence[Decoder]) -> None:
    """Refuse, before work starts, what would do nothing or what ``stages`` cannot draw (``ValueError``)."""
    _unguided(model, options)
    _lonely(model, options)
    class_asked(model, options)
    _steps(model, options)
    if options.class_ is None:
        for stage in stages:
            classes = stage.config.net.classes
            if classes is not None and not stage.config.drop_class:
                raise ValueError(
                    f"the model {model.name} knows no picture without a class: ask for one "
                    f"of 0 to {classes - 1} (class_, or --class)"
                )
    if options.clip_guidance_scale and not (model.takes_prompt and (model.sees or model.guide is not None)):
        raise ValueError(
            f"the model {model.name} holds no CLIP that knows pictures, which clip_guidance_scale needs"
        )


def _lonely(model: Model, options: Options) -> None:
    """Raises ``ValueError`` for what is said of a guide that is not there."""
    if options.autoguidance_scale is not None and model.weaker is None:
        raise ValueError(
            "autoguidance_scale is away from a weaker decoder, and there is none; Pipeline.autoguide_with "
            "takes one"
        )
    if options.cutouts is not None and not options.clip_guidance_scale:
        raise ValueError("cutouts are what CLIP sees while it guides: give a clip_guidance_scale")
    if options.cutouts is not None and model.guide is not None:
        raise ValueError(
            f"{model.name} is guided by a CLIP of noised pictures, which sees whole ones: leave out cutouts"
        )


def _unguided(model: Model, options: Options) -> None:
    """Raises ``ValueError`` for what guidance should do where there is none."""
    if options.negative_prompt and not model.takes_prompt:
        raise ValueError(f"the model {model.name} takes no prompt, nor a negative one")
    asked = [(model.decoder, options.guidance_scale), (model.prior, options.prior_guidance_scale)]
    scales = [
        stage.config.sampling.guidance_scale if scale is None else scale
        for stage, scale in asked
        if stage is not None
    ]
    led_away = model.weaker is not None and options.autoguidance_scale != 1
    for name in ("apg",) if led_away else ("guidance_interval", "apg"):
        if getattr(options, name) is not None and scales[0] == 1:
            raise ValueError(
                f"{name} is of the decoder's guidance, and there is no guidance: "
                "give a guidance_scale other than 1"
            )
    if options.negative_prompt and all(scale == 1 for scale in scales):
        raise ValueError(
            "negative_prompt is what guidance moves away from, and there is no guidance: "
            "give a guidance_scale other than 1"
        )


def _steps(model: Model, options: Options) -> None:
    """Raises ``ValueError`` for steps that a stage's schedule does not have."""
    prior = model.prior
    if options.prior_steps is not None and isinstance(prior, ARPrior):
        raise ValueError(
            f"the prior of {model.name} predicts an embedding's components in turn, and takes no prior_steps"
        )
    if isinstance(prior, Prior) and not prior.config.net.timed:
        for name in ("prior_steps", "prior_guidance_scale"):
            if getattr(options, name) not in (None, 1):
                raise ValueError(
                    f"the prior of {model.name} predicts an embedding at once, and takes no {name}"
                )
    asked: list[tuple[Stage, int | str | None]] = []
    if isinstance(prior, Prior):
        asked.append((prior, options.prior_steps))
    asked += [(model.decoder, options.steps)]
    for stage, steps in [*asked, *((stage, options.upsampler_steps) for stage in model.upsamplers)]:
        if stage is not None and steps is not None:
            stage.levels(override(stage.config.sampling, steps=steps))


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


def override(sampling: S, **changes: object) -> S:
    """A stage's defaults with the changes that are not None."""
    return sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})


def numbers(name: str, values: object, size: int) -> list[int]:
    """An argument that chooses some of ``size``, counted from 0; ``ValueError`` names what is no choice."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not len(values):
        raise ValueError(f"{name} must be a list of numbers from 0 to {size - 1}, not {values!r:.80}")
    return [integer(f"each of {name}", value, 0, size - 1) for value in values]


def integer(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """An argument that must be a whole number; ``ValueError`` names it if it is none, too small or too large.

    True and False are none, though Python counts them as 1 and 0.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most:,}, not {number:,}")
    return number
