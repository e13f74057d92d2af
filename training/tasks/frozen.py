"""The CLIP that a stage is trained with: loaded, or known from embeddings that were made with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unclip.clip import Clip, load_clip
from unclip.config import ConfigError
from unclip.stages import Decoder

from ..data.embeddings import Embeddings

if TYPE_CHECKING:
    from .recipes import PictureRecipe


def frozen_clip(
    recipe: PictureRecipe, stage: Decoder, device: torch.device
) -> tuple[Clip | None, str | None]:
    """The CLIP that a decoder is conditioned with, and its identity; (None, None) for one that needs none.

    With ``data.embeddings`` the CLIP is loaded only for texts whose states are not kept there. Raises
    ``ConfigError`` for a CLIP, or for embeddings, that do not fit.
    """
    if not stage.takes_clip:
        return None, None
    embeddings = None if recipe.data.embeddings is None else Embeddings(recipe.data.embeddings)
    if embeddings is not None and (embeddings.tokens or not stage.takes_text):
        embeddings.check_clip(recipe.clip)
        _check_widths(stage, str(embeddings.folder), embeddings.dim, embeddings.text_dim)
        return None, embeddings.clip
    if recipe.clip is None:
        raise ConfigError(
            "this stage takes CLIP embeddings or text; the recipe must name a clip"
            + ("" if embeddings is None else ", or embeddings made with --tokens")
        )
    clip = load_clip(recipe.clip).to(device)
    _check_widths(stage, recipe.clip, clip.embed_dim, clip.text_dim)
    if embeddings is not None:
        embeddings.check(clip.identity, recipe.clip)
    return clip, clip.identity


def check_widths(source: str, **widths: tuple[int, int | None]) -> None:
    """Refuse what is of other widths than the network (wanted, actual), by ``ConfigError``."""
    for name, (wanted, actual) in widths.items():
        if wanted != actual:
            raise ConfigError(f"stage.net.{name} is {wanted}, but {source} has {actual}")


def _check_widths(stage: Decoder, source: str, embed_dim: int, text_dim: int | None) -> None:
    widths = {"embed_dim": embed_dim, "text_dim": text_dim}
    for kind in stage.kinds:
        if kind.clip_width is not None:
            check_widths(source, **{kind.setting: (kind.width, widths[kind.clip_width])})
