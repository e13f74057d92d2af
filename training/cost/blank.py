"""A recipe's stage, and batches for it that hold nothing: for counting on the meta device, and for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unclip.clip import CONFIG, Clip, build_clip
from unclip.guides.classifier import Classifier
from unclip.resources.weightless import weightless
from unclip.stages import STAGES, Stage

from ..run.examples import Examples
from ..tasks.recipes import ClassifierRecipe, PictureRecipe, PriorRecipe

StageRecipe = PriorRecipe | PictureRecipe | ClassifierRecipe


def stage_of(recipe: StageRecipe) -> Stage | Classifier:
    """The stage that a recipe trains, on torch's default device."""
    return {**STAGES, Classifier.kind(): Classifier}[recipe.stage.kind](recipe.stage)


def side_of(recipe: PictureRecipe | ClassifierRecipe) -> int:
    """Height and width, in pixels, of the pictures that the network is trained on."""
    upsampler = isinstance(recipe, PictureRecipe) and recipe.stage.low_res is not None
    if upsampler:
        return recipe.data.crop or recipe.data.size
    return recipe.stage.size if isinstance(recipe, PictureRecipe) else recipe.stage.net.image_size


def batch_of(recipe: StageRecipe, stage: Stage | Classifier, n: int) -> Examples:
    """A batch of ``n`` of the shapes that training has, on the stage's device; every condition is there."""
    device = next(stage.parameters()).device
    keys = [f"blank-{i}" for i in range(n)]
    if isinstance(recipe, PriorRecipe):
        net = recipe.stage.net
        conditions = stage.conditions(
            torch.zeros(n, net.embed_dim, device=device), *_text(n, net.text_length, net.text_dim, device)
        )
        return Examples(torch.zeros(n, net.embed_dim, device=device), conditions, keys)
    picture = torch.zeros(n, 3, side_of(recipe), side_of(recipe), device=device)
    if isinstance(recipe, ClassifierRecipe):
        return Examples(picture, {"classes": torch.zeros(n, dtype=torch.int64, device=device)}, keys)
    conditions = stage.blank_conditions(n, side_of(recipe))
    return Examples(stage.to_data(picture, conditions), conditions, keys)


def _text(n: int, length: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.zeros(n, length, width, device=device),
        torch.ones(n, length, dtype=torch.bool, device=device),
    )


def clip_of(source: str) -> Clip | None:
    """The CLIP of ``load_clip(source)`` on the meta device, without its weights; None if nothing here
    says what shape it has (a folder that is not there yet, a model of transformers).
    """
    import json

    kind, _, name = source.partition(":")
    with weightless():
        if kind == "open_clip":
            return build_clip(name.partition("@")[0])
        if (described := Path(source) / CONFIG).is_file():
            return build_clip(json.loads(described.read_text(encoding="utf-8"))["model_cfg"])
    return None


def loss_of(stage: nn.Module, examples: Examples) -> torch.Tensor:
    """The mean loss of a batch at the middle of the process."""
    x0 = examples.x0
    t = torch.full((len(x0),), 1 + stage.schedule.timesteps // 2, device=x0.device)
    return stage(x0, t, torch.zeros_like(x0), examples.conditions)["loss"].mean()
