"""What a pipeline refuses: stages that do not fit together, and requests that it cannot meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .checkpoint import CheckpointError
from .classifier import Classifier
from .options import Options
from .stages import Prior

if TYPE_CHECKING:
    from .pipeline import Pipeline


def stages_fit(pipeline: Pipeline) -> None:
    """Raises ``CheckpointError`` for stages that do not fit together."""
    size = pipeline.decoder.size
    for stage in pipeline.upsamplers:
        if stage.config.low_res is None or stage.config.low_res.size != size:
            raise CheckpointError(f"an upsampler does not start from {size} pixels, the size "
                                  "that the stage before it makes")
        size = stage.size
    _clip_fits(pipeline)
    for stage in pipeline.picture_stages:
        if stage.takes_tokens and pipeline.tokenizer is None:
            raise CheckpointError("this model has a text transformer of its own but comes without its "
                                  "tokenizer")
        if stage.takes_tokens and pipeline.tokenizer.length != stage.config.text.length:
            raise CheckpointError(f"the tokenizer makes {pipeline.tokenizer.length} tokens of a text, but a "
                                  f"stage takes {stage.config.text.length}")
    if pipeline.decoder.takes_image and pipeline.prior is None:
        raise CheckpointError("a decoder of image embeddings needs a prior")
    if pipeline.guide is not None:
        theirs = pipeline.guide.config
        _same_levels(pipeline, "CLIP of noised pictures", theirs.net.image_size, theirs.schedule,
                     theirs.net.timesteps)


def _clip_fits(pipeline: Pipeline) -> None:
    stages = [stage for stage in (pipeline.prior, *pipeline.picture_stages) if stage is not None]
    wants_clip = [s for s in stages
                  if isinstance(s, Prior) or s.takes_image or s.takes_text or s.takes_text_embed]
    if wants_clip and pipeline.clip is None:
        raise CheckpointError("this model takes text but comes without its CLIP")
    for stage in wants_clip:
        trained_with = stage.facts.get("clip", pipeline.clip.identity)
        if trained_with.rpartition("#")[2] != pipeline.clip.identity.rpartition("#")[2]:  # by weights
            raise CheckpointError(f"the {stage.config.kind} was trained with CLIP {trained_with}, "
                                  f"but the model holds {pipeline.clip.identity}")


def classifier_fits(pipeline: Pipeline, classifier: Classifier) -> None:
    """Raises ``CheckpointError`` for a classifier of other pictures, noise levels or classes."""
    theirs, classes = classifier.config, pipeline.decoder.config.net.classes
    _same_levels(pipeline, "classifier", theirs.net.image_size, theirs.schedule, theirs.timesteps)
    if classes not in (None, theirs.net.classes):
        raise CheckpointError("the classifier does not fit the decoder: its classes is "
                              f"{theirs.net.classes}, the decoder's {classes}")


def _same_levels(pipeline: Pipeline, what: str, image_size: int, schedule: str, timesteps: int) -> None:
    """Refuse what guides by noised pictures, if it knows others than the decoder makes."""
    process = pipeline.decoder.config.process
    facts = {"image_size": (pipeline.decoder.size, image_size),
             "schedule": (process.schedule, schedule),
             "timesteps": (process.timesteps, timesteps)}
    for name, (wanted, given) in facts.items():
        if wanted != given:
            raise CheckpointError(f"the {what} does not fit the decoder: its {name} is {given}, "
                                  f"the decoder's {wanted}")


def prompts(pipeline: Pipeline, prompt: str | Sequence[str] | None) -> list[str | None]:
    """The prompts as a list, [None] for a model that takes none; ``ValueError`` for what is no text."""
    if not pipeline.takes_prompt:
        if prompt is not None:
            raise ValueError(f"the model {pipeline.name} takes no prompt")
        return [None]
    several = isinstance(prompt, Iterable) and not isinstance(prompt, str)
    given = list(prompt) if several else [prompt]
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {text!r}")
        if not text.strip():
            raise ValueError("the prompt is empty; say what to draw, for example: a goldfish")
    return given


def request(pipeline: Pipeline, options: Options, inpaints: bool) -> None:
    """Refuse, before work starts, what would do nothing or cannot be done; raises ``ValueError``."""
    _negative(pipeline, options)
    class_(pipeline, options)
    if options.class_ is None:
        for stage in pipeline.picture_stages:
            if stage.takes_class and not stage.config.drop_class:
                raise ValueError(f"the model {pipeline.name} knows no picture without a class: ask for one "
                                 f"of 0 to {stage.config.net.classes - 1} (class_, or --class)")
    sees = pipeline.guide is not None or pipeline.clip is not None and pipeline.clip.image_size is not None
    if options.clip_guidance_scale and not (pipeline.takes_prompt and sees):
        raise ValueError(f"the model {pipeline.name} holds no CLIP that knows pictures, which "
                         "clip_guidance_scale needs")
    if inpaints and not pipeline.decoder.config.inpaint:
        raise ValueError(f"the model {pipeline.name} cannot inpaint: it takes no image and mask; one that "
                         "does is glide-inpaint")


def _negative(pipeline: Pipeline, options: Options) -> None:
    if not options.negative_prompt:
        return
    if not pipeline.takes_prompt:
        raise ValueError(f"the model {pipeline.name} takes no prompt, nor a negative one")
    asked = [(pipeline.decoder, options.guidance_scale), (pipeline.prior, options.prior_guidance_scale)]
    scales = [stage.config.sampling.guidance_scale if scale is None else scale
              for stage, scale in asked if stage is not None]
    if all(scale == 1 for scale in scales):
        raise ValueError("negative_prompt is what guidance moves away from, and there is no guidance: "
                         "give a guidance_scale other than 1")


def class_(pipeline: Pipeline, options: Options) -> int | None:
    """The class that is asked for; ``ValueError`` if the model does not know it."""
    if options.classifier_scale is not None and pipeline.classifier is None:
        raise ValueError("classifier_scale needs a classifier; Pipeline.guide_with takes one")
    if options.class_ is None:
        return None
    if not pipeline.classes:
        raise ValueError(f"the model {pipeline.name} takes no class")
    if options.class_ >= pipeline.classes:
        raise ValueError(f"the classes of {pipeline.name} are 0 to {pipeline.classes - 1}, "
                         f"not {options.class_}")
    return options.class_
