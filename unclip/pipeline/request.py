"""What a pipeline is asked for, as one object, and what it refuses before work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

import torch
from PIL import Image
from torch import Tensor

from ..config import parse_config
from ..data.batches import shrink
from ..diffusion.noise import fold
from ..diffusion.samplers import Step
from ..options import DEFAULTS, Asked, Options, checked_text
from ..stages import ARSampling, Conditions, Decoder, Origin, Sampling
from ..stages.origin import with_detail
from .blend import Blend, ImagePrompt, check_embed, mixture, seen
from .canvas import Canvas, canvas_of
from .checks import check_request, class_asked, integer, override
from .prompts import Prompts

S = TypeVar("S", Sampling, ARSampling, Sampling | ARSampling)

if TYPE_CHECKING:
    from .model import Model

Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all), called after every step."""
Watch = Callable[[Step], None]
"""Called with every step of the decoder, of one batch of pictures after another."""


class Followed(Asked, total=False):
    """... and what is told of the steps."""

    progress: Progress | None
    watch: Watch | None


MOST = 1_000_000  # pictures that one call may ask for
RESAMPLINGS = 10  # of a decoder's steps, to fill a hole


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
        )

    def batches(self, size: int) -> Iterator[Wish]:
        """All pictures in turn, at most ``size`` at a time."""
        size = integer("batch_size", size, 1)
        for start in range(0, len(self), size):
            yield self.rows(range(start, min(start + size, len(self))))


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
    canvas = None if image is None or mask is None else canvas_of(image, mask)
    return Wish(
        seeds=[fold(seed, k) for k in range(n)] * len(prompts),
        texts=texts if model.takes_prompt and not alone else None,
        embed=image_embed,
        blend=seen(model, parts) if parts else None,
        options=settings,
        canvas=canvas,
        progress=progress,
        watch=watch,
    )


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
