"""A chain of recipes, each of which trains on what those before it made."""

from __future__ import annotations

from typing import Literal

from unclip.config import Config, load_config

from .clip.recipe import ClipRecipe
from .tasks.recipes import ClassifierRecipe, PictureRecipe, PriorRecipe

RECIPES = {
    "clip": ClipRecipe,
    "prior": PriorRecipe,
    "classifier": ClassifierRecipe,
    "decoder": PictureRecipe,
    "upsampler": PictureRecipe,
}


class Link(Config):
    """One program and its recipe."""

    program: Literal["clip", "prior", "decoder", "upsampler"]
    config: str  # path, relative to where the command runs
    set: list[str] = []  # changes to the recipe, as on the command line: train.pictures=1_000_000


class Chain(Config):
    """A model: what to train, in order, and where the whole goes."""

    name: str
    description: str = ""
    out: str  # the pipeline directory
    half: bool = True  # store weights in half precision
    clip: str | None = None  # one that is not trained here, as ``load_clip`` takes it
    stages: list[Link]


def recipe_of(link: Link) -> ClipRecipe | PriorRecipe | PictureRecipe:
    """A link's recipe, with its changes."""
    return load_config(RECIPES[link.program], link.config, link.set)
