"""What a model can do with a picture that is there: vary it, walk from one to another, turn it by words.

Each verb fills a ``Wish`` with a picture's embedding (what it shows) and its noise (how it shows it): that of
which the sampler would make it, found by following DDIM backwards (Ramesh et al. 2022, section 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.batches import shrink
from ..data.images import to_pil, to_tensor
from ..data.pictures import flatten, square
from ..diffusion.noise import Noise
from ..diffusion.samplers import invert
from ..options import DEFAULTS
from ..provenance import Verb, stamp
from .blend import ImagePrompt
from .canvas import Picture, end_of, fitted, opened
from .checks import integer
from .drawing import Drawing
from .prompts import needed
from .request import Followed, Wish, classes_of, prompts_of, records, sampling_of, wish_of

PIXELS = 1 << 24  # of the largest picture that is drawn: 4096 x 4096
# Options that change nothing where only upsamplers draw; the second ones are of the prior.
IDLE = (
    "steps", "guidance_scale", "guidance_interval", "apg", "autoguidance_scale", "clip_guidance_scale",
    "cutouts", "negative_prompt", "classifier_scale",
)  # fmt: skip
IDLE_PRIOR = ("prior_steps", "prior_guidance_scale")
STEPS, FORGETFUL = 50, ("ddpm",)  # of the decoder, unless told otherwise; samplers that draw fresh noise


def vary(
    pipeline: Drawing, picture: Picture, n: int, spread: float, seed: int, **options: Unpack[Followed]
) -> Wish:
    """What ``Pipeline.vary`` draws."""
    share = _share("spread", spread)
    wish, picture = _wish(pipeline, "vary", options, n, seed), opened(picture)
    image = fitted(picture, pipeline.size).to(pipeline.device)
    wish = replace(wish, embed=pipeline.encode_image(image).expand(len(wish), -1))
    if share < 1:
        own = inverted(pipeline, wish.rows([0]), image)
        wish = replace(wish, start=slerp(own, fresh(pipeline, wish), share))
    return wish.made_by("vary", picture=picture, spread=share)


def interpolate(
    pipeline: Drawing, a: Picture | str, b: Picture | str, n: int, seed: int, **options: Unpack[Followed]
) -> Wish:
    """What ``Pipeline.interpolate`` draws."""
    n = integer("n", n, 2)
    wish = _wish(pipeline, "interpolate", options, n, seed)
    starts = [end_of(one) for one in (a, b)]
    prompts_of(pipeline, [one for one in starts if isinstance(one, str)])
    ends = [_end(pipeline, one, wish.rows([0]), seed) for one in starts]
    shares = torch.linspace(0, 1, n, dtype=torch.float64).tolist()
    embed, start = (torch.cat([slerp(x, y, share) for share in shares]) for x, y in zip(*ends, strict=True))
    wish = replace(wish, seeds=[wish.seeds[0]] * n, embed=embed, start=start)
    return wish.made_by("interpolate", a=starts[0], b=starts[1])


def edit(
    pipeline: Drawing,
    picture: Picture,
    source: str,
    target: str,
    strength: float,
    n: int,
    seed: int,
    **options: Unpack[Followed],
) -> Wish:
    """What ``Pipeline.edit`` draws."""
    strength, n = _share("strength", strength), integer("n", n, 1)
    wish, picture = _wish(pipeline, "edit", options, n, seed), opened(picture)
    image = fitted(picture, pipeline.size).to(pipeline.device)
    difference = text_difference(pipeline, source, target)
    embed = pipeline.encode_image(image)
    start = inverted(pipeline, replace(wish.rows([0]), embed=embed), image)
    towards = embed.norm(dim=-1, keepdim=True) * difference
    shares = [strength] if n == 1 else torch.linspace(0, strength, n, dtype=torch.float64).tolist()
    turned = torch.cat([slerp(embed, towards, share) for share in shares])
    wish = replace(wish, seeds=[wish.seeds[0]] * n, embed=turned, start=start.expand(n, -1, -1, -1))
    return wish.made_by("edit", picture=picture, source=source, target=target, strength=strength)


def redraw(
    pipeline: Drawing,
    picture: Picture,
    prompt: str | Sequence[str] | None,
    strength: float,
    n: int,
    seed: int,
    image_prompt: ImagePrompt | None,
    **options: Unpack[Followed],
) -> Wish:
    """What ``Pipeline.redraw`` draws."""
    strength = _share("strength", strength)
    _no_more("redraw", options)
    wish = wish_of(pipeline, prompt, n=n, seed=seed, image_prompt=image_prompt, **options)
    picture = opened(picture)
    if strength < 1:
        sketch = square(picture, pipeline.size)
        wish = replace(wish, sketch=(to_tensor(sketch)[None].to(pipeline.device), strength))
    return wish.made_by("redraw", picture=picture, strength=strength)


def upscale(
    pipeline: Drawing,
    picture: Picture,
    prompt: str | None,
    seed: int,
    batch_size: int,
    **options: Unpack[Followed],
) -> Image.Image:
    """See ``Pipeline.upscale``."""
    most = integer("batch_size", batch_size, 1)
    _no_more("upscale", options)
    wish = wish_of(pipeline, prompt, seed=seed, wordless=True, **options)
    if len(wish) != 1:
        raise ValueError(f"a picture is upscaled by one prompt or none, not by {len(wish)}")
    picture = opened(picture)
    image = flatten(picture)
    first = _entry(pipeline, image)
    stages = pipeline.upsamplers[first:]
    embeds, reads = (any(getattr(one, name) for one in stages) for name in ("takes_image", "takes_prompt"))
    idle = IDLE if embeds and wish.texts else (*IDLE, *IDLE_PRIOR)
    idle = idle if any(stage.takes_class for stage in stages) else (*idle, "class_")
    for name in idle:
        if getattr(wish.options, name) != getattr(DEFAULTS, name):
            raise ValueError(
                f"to upscale takes no {name}: only upsamplers draw then, by upsampler_steps and sampler"
            )
    if wish.texts and not (embeds or reads):
        warnings.warn(
            f"of a picture of this size the upsamplers of {pipeline.name} take no prompt", stacklevel=3
        )
        wish = replace(wish, texts=None)
    x, top, left = _at_least(image, stages[0].size // stages[0].factor)
    x = x.to(pipeline.device)
    if embeds and not wish.texts and pipeline.sees:
        wish = replace(wish, embed=pipeline.encode_image(fitted(image, pipeline.size)))
    y = pipeline.upsample(x, replace(pipeline.understood(wish), enlarge=first), most)
    factor = y.shape[-1] // x.shape[-1]
    rows, columns = (
        slice(factor * at, factor * (at + side))
        for at, side in zip((top, left), image.size[::-1], strict=True)
    )
    drawn = to_pil(y[0, :, rows, columns].float().cpu())
    told = replace(wish, enlarge=first).made_by("upscale", picture=picture)
    return stamp(drawn, *records(pipeline, told, drawn.size))


def _entry(pipeline: Drawing, image: Image.Image) -> int:
    """The number of the upsampler that a picture enters the chain at: see ``Pipeline.upscale``.

    Raises ``ValueError`` for a model without upsamplers, and for a picture that would become too large.
    """
    if not pipeline.upsamplers:
        raise ValueError(f"the model {pipeline.name} has no upsampler, and cannot upscale; icons has")
    sides = [stage.size // stage.factor for stage in pipeline.upsamplers]
    first = next((k for k, side in enumerate(sides) if side >= max(image.size)), len(sides) - 1)
    factor = pipeline.size // sides[first]
    drawn = [factor * max(side, sides[first]) for side in image.size]
    if drawn[0] * drawn[1] > PIXELS:
        raise ValueError(
            f"a picture of {image.width} x {image.height} pixels becomes {drawn[0]:,} x {drawn[1]:,}, and "
            f"{PIXELS:,} pixels are the most that is drawn; make it smaller first, or cut it"
        )
    return first


def _at_least(image: Image.Image, side: int) -> tuple[Tensor, int, int]:
    """A picture [1,3,H,W] of that many pixels a side or more, mirrored at its edges, and where it lies."""
    height, width = (max(side - length, 0) for length in image.size[::-1])
    top, left = height // 2, width // 2
    margins = ((top, height - top), (left, width - left), (0, 0))
    wide = Image.fromarray(np.pad(np.array(image), margins, "reflect"))
    return to_tensor(wide)[None], top, left


def text_difference(pipeline: Drawing, source: str, target: str) -> Tensor:
    """The unit vector [1,D] from what CLIP makes of one text to what it makes of another (Ramesh et al. 2022,
    section 3.3); ``ValueError`` if that is the same."""
    prompts_of(pipeline, [source, target])
    texts = pipeline.encode_text([source, target])
    of_source, of_target = needed(texts.clip, "its CLIP").embed
    difference = (of_target - of_source)[None]
    if difference.norm() < 1e-6:
        raise ValueError(
            f"to CLIP {source!r} and {target!r} are the same text: nothing leads from one to another"
        )
    return F.normalize(difference, dim=-1)


def _end(pipeline: Drawing, end: Image.Image | str, wish: Wish, seed: int) -> tuple[Tensor, Tensor]:
    """Where a path ends: its embedding [1,D] and its noise; a text's are the prior's and the seed's."""
    if isinstance(end, str):
        asked = {name: getattr(wish.options, name) for name in IDLE_PRIOR}
        return pipeline.embed_prompt(end, seed=seed, **asked), fresh(pipeline, wish)
    image = fitted(end, pipeline.size).to(pipeline.device)
    embed = pipeline.encode_image(image)
    return embed, inverted(pipeline, replace(wish, embed=embed), image)


@torch.no_grad()
def inverted(pipeline: Drawing, wish: Wish, picture: Tensor) -> Tensor:
    """The noise [N,3,S,S] of which the decoder makes ``picture`` [N,3,S,S] in [-1,1], at its own size, again.

    wish: with the pictures' embeddings; its options are those of the sampling that is to follow.
    """
    stage = pipeline.decoder
    sampling = sampling_of(pipeline, stage, wish.options)
    with pipeline._at_work(*filter(None, (stage, pipeline.weaker))), pipeline._autocast():
        classes = classes_of(pipeline, wish)
        conditions = pipeline._conditions(stage, wish, classes)
        null = pipeline._null(stage, wish, classes) or stage.null(conditions)
        scale, weaker = sampling.guidance_scale, pipeline._weaker(wish, classes, sampling)
        denoise = stage.denoise(conditions, null, scale, weaker=weaker, **sampling.of_guidance)
        x0 = stage.to_data(shrink(picture, stage.size), conditions)
        *_, last = invert(denoise, stage.schedule, x0, stage.levels(sampling)[::-1])
    return last.x


def fresh(pipeline: Drawing, wish: Wish) -> Tensor:
    """The noise [N,3,S,S] that the decoder would start from."""
    stage = pipeline.decoder
    scale = sampling_of(pipeline, stage, wish.options).noise_scale
    return scale * Noise(wish.seeds, pipeline.device)(stage.shape)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Rows on the great circle from a to b [N,...]: a at share 0, b at 1, to the bit (Shoemake 1985).

    a of one row serves all of b. Rows that point the same way, or opposite ones, are joined by a line.
    """
    a = a.expand_as(b)
    if share in (0, 1):
        return b if share else a
    dims = list(range(1, b.dim()))
    unit = [x / x.square().sum(dims, keepdim=True).sqrt().clamp_min(1e-12) for x in (a, b)]
    angle = (unit[0] * unit[1]).sum(dims, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    flat = sine < 1e-4
    sine = sine.masked_fill(flat, 1.0)
    of_a = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / sine)
    of_b = torch.where(flat, share, (share * angle).sin() / sine)
    return of_a * a + of_b * b


def _wish(pipeline: Drawing, verb: Verb, options: Followed, n: int, seed: int) -> Wish:
    """What a verb that starts from a picture's own noise asks for: DDIM and no guidance by default.

    Raises ``ValueError`` if the model cannot do the verb.
    """
    if not (pipeline.decoder.takes_image and pipeline.sees):
        raise ValueError(
            f"the model {pipeline.name} cannot {verb}: that needs a CLIP that sees pictures, and a decoder "
            "of its embeddings, as icons has"
        )
    _no_more(verb, options)
    for name in ("negative_prompt", "clip_guidance_scale"):
        if options.get(name):
            raise ValueError(f"{name} is of words, and to {verb} takes none")
    asked = cast(Followed, {key: value for key, value in options.items() if value is not None})
    if asked.get("sampler") in FORGETFUL:
        raise ValueError(
            f"to {verb} starts from a picture's own noise, which {asked['sampler']} forgets, since it draws "
            "new noise at every step; take ddim, dpm++2m or heun"
        )
    unled = None if pipeline.weaker is None else 1.0
    unguided: Followed = {"guidance_scale": 1.0, "autoguidance_scale": unled}
    asked = {"sampler": "ddim", "steps": STEPS, **unguided, **asked}
    unknown = torch.zeros(1, len(pipeline.decoder.embed_mean))  # until CLIP has seen the picture
    return wish_of(pipeline, n=n, seed=seed, image_embed=unknown, **asked).made_by(verb, image_embed=None)


def _no_more(verb: str, options: Followed) -> None:
    """Raises ``ValueError`` for what ``generate`` takes and a verb does not, such as a mask."""
    for name in options.keys() - Followed.__annotations__.keys():
        raise ValueError(f"to {verb} takes no {name}")


def _share(name: str, value: float) -> float:
    """A number from 0 to 1; ``ValueError`` names what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
    return float(value)
