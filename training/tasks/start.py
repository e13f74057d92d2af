"""How a run of a stage begins: what every stage's program does, and whose weights it starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from unclip.checkpoint import load_strictly
from unclip.config import Config, ConfigError, differences
from unclip.stages import Decoder, Stage, load_stage

from ..programs import program
from ..run import folder
from ..run.examples import Task
from ..run.loop import train
from ..run.settings import make_accelerator
from .recipes import TOKENIZER, PictureRecipe

# Of a decoder's network: what it is told of texts, and the tokens beside which the text stands.
TEXT = ("context_channels", "image_tokens", "text_dim", "text_embed_dim")


def train_stage(
    recipe_class: type[Config],
    stage_class: Callable[[Config], Stage],
    task_class: Callable[[Config, Stage, Accelerator], Task],
    description: str,
    argv: list[str] | None = None,
    check: Callable[[Config], None] = lambda recipe: None,
) -> int:
    """A stage's program: reads the recipe, and trains its stage on its task; returns the exit code.

    check: raises ``ConfigError`` for a recipe that belongs to another program.
    """
    recipe = program(recipe_class, description, argv)
    if recipe is None:
        return 0
    check(recipe)
    out = Path(recipe.train.out)
    folder.check(out)
    accelerator = make_accelerator(recipe.train)
    with folder.held(out, accelerator):
        torch.manual_seed(recipe.train.seed)
        stage = stage_class(recipe.stage)
        begin(stage, getattr(recipe, "start", None))
        if isinstance(recipe, PictureRecipe):
            take_autoencoder(stage, recipe)
        task = task_class(recipe, stage.to(accelerator.device), accelerator)
        tokenizer = getattr(task, "tokenizer", None)
        if tokenizer is not None and accelerator.is_main_process:
            tokenizer.save(out / TOKENIZER)
        return train(stage, task, recipe.train, recipe, accelerator)


def begin(stage: Stage, path: str | None) -> None:
    """Give a new stage the weights of a checkpoint of the same kind and network; None = leave it as it is.

    A checkpoint that was not told the text may start a network that is: what reads it begins as it was built.
    What is measured anew (statistics of embeddings, a memory) replaces what comes with them. ``ConfigError``,
    with what differs, for a checkpoint of another kind or network.
    """
    if path is None:
        return
    start = load_stage(path)
    kinds = [one.config.kind for one in (stage, start)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"start: {path} holds a {kinds[1]}, not a {kinds[0]}")
    same = {"net", "text", "last_network", "autoencoder"}
    old, new = (one.config.model_dump(mode="json", include=same) for one in (start, stage))
    learns_text = False
    if kinds[0] == "decoder":
        learns_text = all(old["net"][name] is None for name in ("context_channels", "text_embed_dim"))
    if learns_text:
        old["net"] |= {name: new["net"][name] for name in TEXT}
    changes = differences(old, new)
    if changes:
        raise ConfigError(
            f"start: {path} holds another network than the recipe's: "
            + "; ".join(f"{key} {change}" for key, change in changes.items())
        )
    weights = start.state_dict()
    load_strictly(stage, {**stage.state_dict(), **weights} if learns_text else weights, path)


def take_autoencoder(stage: Decoder, recipe: PictureRecipe) -> None:
    """Give a new stage of latents the autoencoder that its recipe names; it is not trained.

    Raises ``ConfigError`` where there is none, or one of another shape than ``stage.autoencoder``.
    """
    path, wanted = recipe.autoencoder, recipe.stage.autoencoder
    if path is None:
        if wanted is not None and recipe.start is None:
            raise ConfigError(
                "stage.autoencoder is of weights that are there already; autoencoder names the decoder's "
                "checkpoint that holds them"
            )
        return
    held = Decoder.load(path)
    if wanted is None or held.config.autoencoder != wanted:
        theirs = None if held.config.autoencoder is None else held.config.autoencoder.model_dump(mode="json")
        raise ConfigError(f"autoencoder: {path} holds {theirs}, which stage.autoencoder is to be, too")
    assert stage.autoencoder is not None and held.autoencoder is not None
    stage.autoencoder.load_state_dict(held.autoencoder.state_dict())
