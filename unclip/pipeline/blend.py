"""Image embeddings that a call brings along: as they are, or mixed of pictures and texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .canvas import Picture, end_of, fitted

if TYPE_CHECKING:
    from .model import Model

Part = Picture | tuple[Picture, float]
ImagePrompt = Part | Sequence[Part]
"""A picture, its file or a text; with a weight as a pair; or a list of several."""
ROUNDS, CLOSE = 100, 1e-9  # of the mean on a sphere, and the angle that is none
HEAVIEST = 10_000  # weight of a part


@dataclass(frozen=True)
class Blend:
    """What is mixed, with shares above 0 that sum to 1: CLIP's embedding [1,D] of a picture, a text, of which
    the prior makes one, or None, which is the prompt of whatever picture is drawn."""

    parts: Sequence[tuple[Tensor | str | None, float]]

    @property
    def texts(self) -> list[str]:
        return [part for part, _ in self.parts if isinstance(part, str)]

    def embed(self, own: Tensor | None, texts: Iterator[Tensor], n: int) -> Tensor:
        """The mean [N,D]: of the prompts' (``own`` [N,D]), the texts' in turn [N,D] each, the pictures'."""
        embeds = []
        for part, _ in self.parts:
            value = own if part is None else next(texts) if isinstance(part, str) else part.expand(n, -1)
            assert value is not None
            embeds.append(value)
        return spherical_mean(embeds, [share for _, share in self.parts])


def spherical_mean(embeds: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The mean of vectors [N,D] by shares that sum to 1: of their directions, on the sphere, and lengths.

    The direction is the one from which the squared angles to all, by their shares, sum to the least (Buss &
    Fillmore 2001, Spherical averages, algorithm A1); of two it is ``slerp``, as unCLIP mixes pictures (Ramesh
    et al. 2022, section 3.2). One alone is itself, to the bit. Raises ``ValueError`` for those that cancel.
    """
    if len(embeds) == 1:
        return embeds[0]
    x = torch.stack(list(embeds)).double()  # [K,N,D]
    weight = x.new_tensor(shares)[:, None, None]
    length = (weight * x.norm(dim=-1, keepdim=True)).sum(0)
    x = F.normalize(x, dim=-1)
    mean = (weight * x).sum(0)
    if (mean.norm(dim=-1) < 1e-6).any():
        raise ValueError("what is mixed points in opposite directions, between which there is no mean")
    mean = F.normalize(mean, dim=-1)
    for _ in range(ROUNDS):
        cosine = (x * mean).sum(-1, keepdim=True)
        across = x - cosine * mean
        sine = across.norm(dim=-1, keepdim=True)
        step = (weight * across * (torch.atan2(sine, cosine) / sine.clamp_min(1e-300))).sum(0)
        angle = step.norm(dim=-1, keepdim=True)
        if (angle < CLOSE).all():
            break
        mean = F.normalize(angle.cos() * mean + torch.sinc(angle / math.pi) * step, dim=-1)
    return (length * mean).to(embeds[0])


def mixture(
    model: Model, image_prompt: ImagePrompt, prompt: str | Sequence[str] | None
) -> tuple[str | Sequence[str] | None, list[tuple[Image.Image | str | None, float]]]:
    """What is mixed, with its shares; a prompt is a part, of weight 1, as all without a weight have.

    What weighs nothing is left out. One text alone becomes the prompt, and a prompt alone needs no mixing.
    Raises ``ValueError`` for what is no part or no weight, and for a model that cannot take it.
    """
    parts = [*weighted(image_prompt), *([] if prompt is None else [(None, 1.0)])]
    total = sum(weight for _, weight in parts)
    if total == 0:
        raise ValueError("the weights of the image prompt sum to 0: nothing is left to draw")
    if not model.decoder.takes_image:
        raise ValueError(
            f"the model {model.name} takes no image_prompt: its decoder knows no image embedding"
        )
    parts = [(part, weight / total) for part, weight in parts if weight > 0]
    if not model.sees and any(isinstance(part, Image.Image) for part, _ in parts):
        raise ValueError(
            f"the CLIP of {model.name} sees no pictures, which image_prompt needs; it takes texts"
        )
    if len(parts) == 1 and not isinstance(only := parts[0][0], Image.Image):
        return (prompt if only is None else only), []
    return prompt, parts


def seen(model: Model, parts: Sequence[tuple[Image.Image | str | None, float]]) -> Blend:
    """The same with the pictures as CLIP sees them, of each the middle square, on white."""
    return Blend(
        [
            (model.encode_image(fitted(part, model.size)) if isinstance(part, Image.Image) else part, share)
            for part, share in parts
        ]
    )


def weighted(image_prompt: ImagePrompt) -> list[tuple[Image.Image | str | None, float]]:
    """The parts of an image prompt, files opened, each with its weight; ``ValueError`` for what is none."""
    several = isinstance(image_prompt, list) or isinstance(image_prompt, tuple) and not _is_pair(image_prompt)
    parts: list[tuple[Image.Image | str | None, float]] = []
    for one in cast(Sequence[Part], image_prompt if several else [image_prompt]):
        part, weight = cast(tuple[Picture, float], one if _is_pair(one) else (one, 1.0))
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight <= HEAVIEST:
            raise ValueError(f"a weight of image_prompt is a number from 0 to {HEAVIEST}, not {weight!r:.80}")
        if not isinstance(part, str | Path | Image.Image):
            raise ValueError(
                f"an image prompt is of pictures, files and texts, with weights or without, not {part!r:.80}"
            )
        parts.append((end_of(part), float(weight)))
    if not parts:
        raise ValueError("image_prompt is empty; give a picture, its file or a text")
    return parts


def _is_pair(value: object) -> bool:
    """Whether it is one part and its weight, and not two parts."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], str | Path | Image.Image)
        and not isinstance(value[1], str | Path | Image.Image | list | tuple)
    )


def check_embed(model: Model, embed: Tensor) -> None:
    """Raises ``ValueError`` for what are no image embeddings [N,D] that the model takes."""
    width = len(model.decoder.embed_mean)
    if not model.decoder.takes_image:
        raise ValueError(f"the model {model.name} takes no image_embed: its decoder knows none")
    if not isinstance(embed, Tensor) or embed.dim() != 2 or embed.shape[1] != width:
        shape = list(embed.shape) if isinstance(embed, Tensor) else type(embed).__name__
        raise ValueError(f"image_embed must be a tensor [N,{width}], not {shape}")
    if not embed.isfinite().all():
        raise ValueError("image_embed holds numbers that are infinite or none")
