"""What a pipeline is asked for, as one object, and what it refuses before work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack, cast

import torch
from PIL import Image
from torch import Tensor

from ..config import parse_config
from ..data.batches import shrink
from ..diffusion.noise import fold
from ..diffusion.samplers import Step
from ..options import DEFAULTS, Asked, Options, checked_text
from ..provenance import Argument, Name, Record, Verb
from ..stages import ARSampling, Conditions, Decoder, Origin, Sampling
from ..stages.origin import with_detail
from .blend import Blend, ImagePrompt, check_embed, mixture, seen, weighted
from .canvas import Canvas, canvas_of, opened, said_of
from .checks import check_request, class_asked, integer, numbers, override
from .prompts import Prompts

S = TypeVar("S", Sampling, ARSampling, Sampling | ARSampling)

if TYPE_CHECKING:
    from .model import Model

Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all), called after every step."""
Watch = Callable[[Step], None]
"""Called with every step of the decoder, of one batch of pictures after another."""


class Followed(Asked, total=False):
    """... and what is told of the steps, and which of the pictures are drawn."""

    progress: Progress | None
    watch: Watch | None
    only: Sequence[int] | None


MOST = 1_000_000  # pictures that one call may ask for
IN_FORCE = ("sampler", "steps", "guidance_scale")  # that are recorded though they be the plain ones
RESAMPLINGS = 10  # of a decoder's steps, to fill a hole


@dataclass(frozen=True)
class Making:
    """How one picture is asked for: ``Record`` has the same names."""

    verb: Verb
    seed: int
    k: int
    n: int
    arguments: Mapping[Name, Argument]
    batch_size: int | None = None


@dataclass(frozen=True)
class Wish:
    """Pictures that are asked for, a row each; None = not asked for, or not known yet.

    ``wish_of`` makes one of what a user says, for all pictures; ``batches`` cuts it up, ``Pipeline.decode``
    and ``Pipeline.upsample`` draw what one says.
    """

    seeds: Sequence[int]  # of each picture's noise
    texts: Sequence[str] | None = None  # the prompts; None for a model that takes none
    options: Options = DEFAULTS
    classes: Tensor | None = None  # int64 [N], each picture's own; None = ``options.class_`` for all
    embed: Tensor | None = None  # [N,D], image embeddings; None = the prior's, if the model has one
    blend: Blend | None = None  # of which image embeddings are mixed, the same for all
    start: Tensor | None = None  # [N,3,S,S], the decoder's noise, in place of the seeds'
    canvas: Canvas | None = None  # a picture to be inpainted, the same for all
    sketch: tuple[Tensor, float] | None = None  # a picture [1,3,S,S] to be drawn over, and how strongly
    enlarge: int | None = None  # the upsampler from which on they alone draw, of a picture of the user's
    makings: Sequence[Making] = ()  # what is recorded of each picture; none = nothing
    only: Sequence[int] | None = None  # the pictures that are drawn; None = all
    progress: Progress | None = None
    watch: Watch | None = None
    text: Prompts | None = None  # the texts, encoded
    unwanted: tuple[Prompts | None, Tensor | None] | None = None  # what guidance moves away from, its embed

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, chosen: Sequence[int]) -> Wish:
        """Some of the pictures, of a wish whose texts are not encoded yet."""
        chosen = list(chosen)

        def own(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[chosen]

        return replace(
            self,
            seeds=[self.seeds[k] for k in chosen],
            texts=None if self.texts is None else [self.texts[k] for k in chosen],
            classes=own(self.classes),
            embed=own(self.embed),
            start=own(self.start),
            makings=[self.makings[k] for k in chosen] if self.makings else (),
            only=None,
        )

    def made_by(self, verb: Verb, **arguments: object) -> Wish:
        """The same, recorded as asked for by a verb; arguments: more of its own, pictures among them, or None
        for what is not to be recorded."""
        said = {cast(Name, name): said_of(value) for name, value in arguments.items() if value is not None}
        makings = []
        for one in self.makings:
            known = {name: value for name, value in one.arguments.items() if name not in arguments}
            makings.append(replace(one, verb=verb, arguments=known | said))
        return replace(self, makings=makings)

    def batches(self, size: int) -> Iterator[Wish]:
        """All pictures in turn, at most ``size`` at a time."""
        size = integer("batch_size", size, 1)
        rows = range(len(self)) if self.only is None else numbers("only", self.only, len(self))
        alike = self.only is None and len(set(self.texts or ())) < 2  # then one is drawn again with these
        of_size = (
            replace(self, makings=[replace(one, batch_size=size) for one in self.makings]) if alike else self
        )
        for start in range(0, len(rows), size):
            yield of_size.rows(rows[start : start + size])


def wish_of(
    model: Model,
    prompt: str | Sequence[str] | None = None,
    *,
    n: int = 1,
    seed: int = 0,
    image: Image.Image | str | Path | None = None,
    mask: Image.Image | str | Path | None = None,
    image_embed: Tensor | None = None,
    image_prompt: ImagePrompt | None = None,
    wordless: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
    only: Sequence[int] | None = None,
    **options: Unpack[Asked],
) -> Wish:
    """All pictures that a call asks for, prompt by prompt; the arguments are those of ``generate``.

    wordless: upsamplers alone draw, and no prompt is needed, as with an image_embed or an image_prompt.

    Raises ``ValueError`` for whatever the model cannot do, or nobody could.
    """
    if image_embed is not None:
        check_embed(model, image_embed)
    parts: list[tuple[Image.Image | str | None, float]] = []
    if image_prompt is not None:
        if image_embed is not None:
            raise ValueError("image_prompt and image_embed are the same to the decoder: give one of them")
        prompt, parts = mixture(model, image_prompt, prompt)
        prompts_of(model, [part for part, _ in parts if isinstance(part, str)])
    alone = prompt is None and (wordless or image_embed is not None or bool(parts))
    prompts: list[str | None] = [None] * (1 if image_embed is None else len(image_embed))
    if not alone:
        prompts = prompts_of(model, prompt)
    settings = parse_config(Options, options, source="the call")
    for name, function in (("progress", progress), ("watch", watch)):
        if function is not None and not callable(function):
            raise ValueError(f"{name} must be a function, not {function!r:.80}")
    if (image is None) != (mask is None):
        raise ValueError("inpainting takes both an image and a mask, of which white is painted anew")
    check_request(model, settings, model.upsamplers if wordless else model.picture_stages)
    if settings.resamplings is not None and (image is None or model.decoder.config.inpaint):
        raise ValueError(
            "resamplings are of a picture that is inpainted by a model which was not trained for it"
        )
    seed, n = integer("seed", seed), integer("n", n, 1)
    if n * len(prompts) > MOST:
        raise ValueError(f"{n * len(prompts):,} pictures are more than one call draws ({MOST:,}); ask again")
    if alone and (settings.negative_prompt and not parts or settings.clip_guidance_scale):
        raise ValueError("negative_prompt and clip_guidance_scale are of words, and there is no prompt")
    if image_embed is not None:
        image_embed = image_embed.to(model.device, torch.float32).repeat_interleave(n if alone else 1, dim=0)
        if len(image_embed) != n * len(prompts):
            raise ValueError(
                f"{n * len(prompts)} pictures need as many rows of image_embed, not {len(image_embed)}"
            )
    texts = [text for text in prompts if text is not None for _ in range(n)]
    if only is not None:
        numbers("only", only, n * len(prompts))
    told: dict[str, object] = {
        "image_prompt": weighted(cast(ImagePrompt, image_prompt)) if parts else None,
        "image_embed": image_embed,
    }
    canvas = None
    if image is not None and mask is not None:
        image, mask = opened(image), opened(mask)
        canvas = canvas_of(image, mask)
        told |= {"picture": image, "mask": mask}
    return Wish(
        seeds=[fold(seed, k) for k in range(n)] * len(prompts),
        makings=[Making("generate", seed, k, n, {}) for k in range(n)] * len(prompts),
        texts=texts if model.takes_prompt and not alone else None,
        embed=image_embed,
        blend=seen(model, parts) if parts else None,
        options=settings,
        canvas=canvas,
        only=only,
        progress=progress,
        watch=watch,
    ).made_by("generate" if canvas is None else "inpaint", **told)


def prompts_of(model: Model, prompt: str | Sequence[str] | None) -> list[str | None]:
    """The prompts as a list, [None] for a model that takes none; ``ValueError`` for what is no text."""
    if not model.takes_prompt:
        if prompt is not None:
            raise ValueError(f"the model {model.name} takes no prompt")
        return [None]
    texts: list[str | None] = []
    one = isinstance(prompt, str | bytes | Mapping)
    for text in prompt if isinstance(prompt, Iterable) and not one else [prompt]:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {text!r:.80}")
        if not checked_text(text, "the prompt").strip():
            raise ValueError("the prompt is empty; say what to draw, for example: a goldfish")
        texts.append(text)
    return texts


def classes_of(model: Model, wish: Wish) -> Tensor | None:
    """The classes that are asked for, int64 [N]; None for none."""
    if wish.classes is not None:
        return wish.classes
    number = class_asked(model, wish.options)
    return None if number is None else torch.full((len(wish),), number, device=model.device)


def origin_of(model: Model, stage: Decoder, wish: Wish, conditions: Conditions) -> Origin | None:
    """What a picture stage draws over, or keeps a part of, if it is not told of that itself."""
    if wish.sketch is not None:
        picture, strength = wish.sketch
        picture = shrink(picture, stage.size)
        if stage.config.low_res is not None:
            coarse = stage.enlarge(shrink(picture, stage.config.low_res.size))
            picture = with_detail(conditions["base"], picture, coarse, stage.factor)
        return Origin(picture, strength)
    if wish.canvas is None or stage.config.inpaint:
        return None
    picture, known = wish.canvas.at(stage.size, model.device)
    asked = wish.options.resamplings or RESAMPLINGS
    return Origin(picture, known=known > 0.5, resamplings=asked if stage is model.decoder else 1)


def sampling_of(model: Model, stage: Decoder, options: Options) -> Sampling:
    """How a picture stage samples: its defaults, with what is asked for in their place."""
    if stage is not model.decoder:
        return override(stage.config.sampling, steps=options.upsampler_steps)
    names = ("steps", "guidance_scale", "guidance_interval", "apg", "autoguidance_scale", "sampler")
    return override(stage.config.sampling, **{name: getattr(options, name) for name in names})


def records(model: Model, wish: Wish, sides: tuple[int, int]) -> list[Record]:
    """How each picture of a batch is made, if that is to be recorded; wish: before its texts are encoded.

    sides: width and height of the pictures.
    """
    if not wish.makings:
        return []
    common = {
        "model": model.name,
        "digest": model.digest(),
        "options": wish.options.model_dump(mode="json", exclude_defaults=True),
        "in_force": in_force(model, wish),
        "size": sides,
        "device": str(model.device),
        "dtype": str(model.decoder.network.out.weight.dtype).removeprefix("torch."),
    }
    texts: Sequence[str | None] = wish.texts or [None] * len(wish)
    return [
        Record(prompt=text, **vars(making), **common)
        for making, text in zip(wish.makings, texts, strict=True)
    ]


def in_force(model: Model, wish: Wish) -> dict[str, dict[str, object]]:
    """How each stage that is at work samples: its defaults, with what is asked for in their place."""
    stages: dict[str, Sampling | ARSampling] = {}
    if model.prior is not None and wish.texts is not None and wish.embed is None:
        asked = {"steps": wish.options.prior_steps, "guidance_scale": wish.options.prior_guidance_scale}
        stages["prior"] = override(model.prior.config.sampling, **asked)
    if wish.enlarge is None:
        stages["decoder"] = sampling_of(model, model.decoder, wish.options)
    for number, stage in enumerate(model.upsamplers):
        if number >= (wish.enlarge or 0):
            stages[f"upsampler {number + 1}"] = sampling_of(model, stage, wish.options)
    plain = {name: field.default for name, field in Sampling.model_fields.items() if name not in IN_FORCE}
    return {
        name: {key: value for key, value in stage.model_dump(mode="json").items() if value != plain.get(key)}
        for name, stage in stages.items()
    }
