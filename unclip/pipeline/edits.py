"""What a model can do with a picture that is there: vary it, walk from one to another, turn it by words.

Each verb fills a ``Wish`` with a picture's embedding (what it shows) and its noise (how it shows it): that of
which the sampler would make it, found by following DDIM backwards (Ramesh et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.batches import shrink
from ..data.images import to_tensor
from ..data.pictures import square
from ..diffusion.noise import Noise
from ..diffusion.samplers import invert
from .canvas import opened
from .drawing import Drawing
from .prompts import needed
from .request import Followed, Wish, classes_of, integer, prompts_of, sampling_of, wish_of

Picture = Image.Image | str | Path
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}  # files, not texts
STEPS, FORGETFUL = 50, ("ddpm",)  # of the decoder, unless told otherwise; samplers that draw fresh noise


def vary(
    pipeline: Drawing,
    picture: Picture,
    n: int,
    spread: float,
    seed: int,
    batch_size: int,
    **options: Unpack[Followed],
) -> list[Image.Image]:
    """See ``Pipeline.vary``."""
    share = _share("spread", spread)
    wish = _wish(pipeline, "vary", options, n, seed)
    image = _fitted(pipeline, picture)
    wish = replace(wish, embed=_seen(pipeline, image).expand(len(wish), -1))
    if share < 1:
        own = inverted(pipeline, wish.rows([0]), image)
        wish = replace(wish, start=slerp(own, fresh(pipeline, wish), share))
    return pipeline.drawn(wish, batch_size)


def interpolate(
    pipeline: Drawing,
    a: Picture | str,
    b: Picture | str,
    n: int,
    seed: int,
    batch_size: int,
    **options: Unpack[Followed],
) -> list[Image.Image]:
    """See ``Pipeline.interpolate``."""
    n = integer("n", n, 2)
    wish = _wish(pipeline, "interpolate", options, n, seed)
    ends = [_end(pipeline, one, wish.rows([0]), seed) for one in (a, b)]
    shares = torch.linspace(0, 1, n, dtype=torch.float64).tolist()
    embed, start = (torch.cat([slerp(x, y, share) for share in shares]) for x, y in zip(*ends, strict=True))
    wish = replace(wish, seeds=[wish.seeds[0]] * n, embed=embed, start=start)
    return pipeline.drawn(wish, batch_size)


def edit(
    pipeline: Drawing,
    picture: Picture,
    source: str,
    target: str,
    strength: float,
    n: int,
    seed: int,
    batch_size: int,
    **options: Unpack[Followed],
) -> list[Image.Image]:
    """See ``Pipeline.edit``."""
    strength, n = _share("strength", strength), integer("n", n, 1)
    wish = _wish(pipeline, "edit", options, n, seed)
    difference = text_difference(pipeline, source, target)
    image = _fitted(pipeline, picture)
    embed = _seen(pipeline, image)
    start = inverted(pipeline, replace(wish.rows([0]), embed=embed), image)
    towards = embed.norm(dim=-1, keepdim=True) * difference
    shares = [strength] if n == 1 else torch.linspace(0, strength, n, dtype=torch.float64).tolist()
    turned = torch.cat([slerp(embed, towards, share) for share in shares])
    wish = replace(wish, seeds=[wish.seeds[0]] * n, embed=turned, start=start.expand(n, -1, -1, -1))
    return pipeline.drawn(wish, batch_size)


def redraw(
    pipeline: Drawing,
    picture: Picture,
    prompt: str | Sequence[str] | None,
    strength: float,
    n: int,
    seed: int,
    batch_size: int,
    **options: Unpack[Followed],
) -> list[Image.Image]:
    """See ``Pipeline.redraw``."""
    strength = _share("strength", strength)
    wish = wish_of(pipeline, prompt, n=n, seed=seed, **options)
    fitted = square(opened(picture), pipeline.size)
    if strength == 0:
        return [fitted.copy() for _ in range(len(wish))]
    if strength < 1:
        wish = replace(wish, sketch=(to_tensor(fitted)[None].to(pipeline.device), strength))
    return pipeline.drawn(wish, batch_size)


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


def end_of(end: Picture, text: bool = True) -> Image.Image | str:
    """A picture, of PIL or of a file; or a text, which is what does not end as a picture's file does."""
    return end if text and isinstance(end, str) and Path(end).suffix.lower() not in SUFFIXES else opened(end)


def _end(pipeline: Drawing, end: Picture, wish: Wish, seed: int) -> tuple[Tensor, Tensor]:
    """Where a path ends: its embedding [1,D] and its noise; a text's are the prior's and the seed's."""
    end = end_of(end)
    if isinstance(end, str):
        embed = pipeline.embed_prompt(end, seed=seed, prior_steps=wish.options.prior_steps)
        return embed, fresh(pipeline, wish)
    image = _fitted(pipeline, end)
    embed = _seen(pipeline, image)
    return embed, inverted(pipeline, replace(wish, embed=embed), image)


@torch.no_grad()
def inverted(pipeline: Drawing, wish: Wish, picture: Tensor) -> Tensor:
    """The noise [N,3,S,S] of which the decoder makes ``picture`` [N,3,S,S] in [-1,1], at its own size, again.

    wish: with the pictures' embeddings; its options are those of the sampling that is to follow.
    """
    stage = pipeline.decoder
    sampling = sampling_of(pipeline, stage, wish.options)
    with pipeline._at_work(stage), pipeline._autocast():
        conditions = pipeline._conditions(stage, wish, classes_of(pipeline, wish))
        denoise = stage.denoise(
            conditions, stage.null(conditions), sampling.guidance_scale, **sampling.of_guidance
        )
        x0 = stage.to_data(shrink(picture, stage.size), conditions)
        *_, last = invert(denoise, stage.schedule, x0, stage.levels(sampling)[::-1])
    return last.x


def fresh(pipeline: Drawing, wish: Wish) -> Tensor:
    """The noise [N,3,S,S] that the decoder would start from."""
    stage = pipeline.decoder
    scale = sampling_of(pipeline, stage, wish.options).noise_scale
    return scale * Noise(wish.seeds, pipeline.device)((3, stage.size, stage.size))


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


def _wish(pipeline: Drawing, verb: str, options: Followed, n: int, seed: int) -> Wish:
    """What a verb that starts from a picture's own noise asks for: DDIM and no guidance by default.

    Raises ``ValueError`` if the model cannot do the verb.
    """
    clip = pipeline.clip
    if not pipeline.decoder.takes_image or clip is None or clip.image_size is None:
        raise ValueError(
            f"the model {pipeline.name} cannot {verb}: that needs a CLIP that sees pictures, and a decoder "
            "of its embeddings, as icons has"
        )
    for name in ("negative_prompt", "clip_guidance_scale"):
        if options.get(name):
            raise ValueError(f"{name} is of words, and to {verb} takes none")
    asked = cast(Followed, {key: value for key, value in options.items() if value is not None})
    if asked.get("sampler") in FORGETFUL:
        raise ValueError(
            f"to {verb} starts from a picture's own noise, which {asked['sampler']} forgets, since it draws "
            "new noise at every step; take ddim, dpm++2m or heun"
        )
    asked = {"sampler": "ddim", "steps": STEPS, "guidance_scale": 1.0, **asked}
    unknown = torch.zeros(1, len(pipeline.decoder.embed_mean))  # until CLIP has seen the picture
    return wish_of(pipeline, n=n, seed=seed, image_embed=unknown, **asked)


def _share(name: str, value: float) -> float:
    """A number from 0 to 1; ``ValueError`` names what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
    return float(value)


def _fitted(pipeline: Drawing, picture: Picture) -> Tensor:
    """The middle square of a picture as a tensor [1,3,S,S] in [-1,1]; what is transparent is white."""
    return to_tensor(square(opened(picture), pipeline.size))[None].to(pipeline.device)


@torch.no_grad()
def _seen(pipeline: Drawing, picture: Tensor) -> Tensor:
    """CLIP's embeddings [N,D] of pictures, as the decoder takes them."""
    clip = needed(pipeline.clip, "its CLIP")
    with pipeline._at_work(clip):
        embed = clip.towers.image(clip.preprocess(picture)).float()
    as_it_comes = pipeline.prior is not None and not pipeline.prior.config.unit_norm
    return embed if as_it_comes else F.normalize(embed, dim=-1)
