"""One run of CLIP's training: builds what it needs, runs the phases, writes the model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from unclip.clip import Clip, build_clip, load_clip, save_clip
from unclip.clip.towers import OpenClipTowers, TransformersTowers
from unclip.config import ConfigError
from unclip.files import written_aside
from unclip.guides.noised_clip import NoisedClip, load_noised_clip
from unclip.nets.blocks import Unit

from ..data.source import Source
from .batches import ContrastBatches, DistilBatches
from .evaluation import Evaluation, measure_noised
from .losses import ClipContrast, Distil, Head, NoisedContrast
from .phase import Batches, PhaseRun
from .pool import build_pool, teacher_table, vocabulary_of
from .recipe import ClipRecipe, Phase

GUIDE = "noised_clip.safetensors"


class Trainer:
    """One run: builds what it needs, runs the phases, writes the model."""

    def __init__(self, recipe: ClipRecipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator, self.out = recipe, accelerator, Path(recipe.out)
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.cache = Path(recipe.cache or recipe.out)
        torch.manual_seed(recipe.seed)
        self.clip = model_of(recipe).to(self.device)
        self.clip.requires_grad_(True)
        if recipe.checkpointing:
            _checkpoint(self.clip)
        self.source = Source(recipe.data, recipe.seed, self.rank, accelerator.num_processes)
        self.evaluation = Evaluation(recipe.data, self.source, recipe.unseen)
        self.pool, self.table, self.texts = None, None, []
        if recipe.distinct is not None:
            with accelerator.main_process_first():
                self._prepare_pool()
        self.contrast = self._contrast().to(self.device)
        accelerator.init_trackers("curves")

    def _prepare_pool(self) -> None:
        """Pictures in memory, and the teacher's vectors of their captions and of its vocabulary."""
        recipe = self.recipe
        self.pool = build_pool(recipe, self.cache)
        self.texts = list(dict.fromkeys(self.pool.caption))
        row = {text: i for i, text in enumerate(self.texts)}
        self.row = torch.tensor([row[caption] for caption in self.pool.caption])
        if recipe.teacher is not None:
            words = vocabulary_of(recipe.teacher.vocabulary, self.clip, self.cache)
            self.table = teacher_table((self.texts, words), self.cache, self.device)
            self.texts = self.texts + words

    def _contrast(self) -> ClipContrast | NoisedContrast:
        if isinstance(self.clip, NoisedClip):
            return NoisedContrast(self.clip, self.recipe.same)
        if self.table is None:
            return ClipContrast(self.clip, None, self.recipe.same)
        known = self.table[self.row.unique()].float()
        return ClipContrast(
            self.clip, Head(known, self.clip.embed_dim, self.recipe.teacher.hidden), self.recipe.same
        )

    def train(self) -> dict[str, object]:
        """Both phases; returns the metrics, which also lie in `metrics.json`. `Stopped` if a signal came."""
        recipe = self.recipe
        vectors = None if self.table is None else self.table[self.row]
        self._optimise(
            "images",
            recipe.images,
            self.contrast,
            ContrastBatches(recipe, self.clip.tokenize, self.source, self.accelerator, self.pool, vectors),
        )
        if recipe.texts is not None:
            self._learn_texts()
        metrics = {}
        if self.accelerator.is_main_process:
            self._write()
            metrics = self._measure()
            with written_aside(self.out / "metrics.json") as aside:
                aside.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        self.accelerator.end_training()
        return metrics

    def _learn_texts(self) -> None:
        """The second phase."""
        with torch.no_grad():
            goal = self.contrast.head(self.table.float().to(self.device)).cpu()
        ids, mask = self.clip.tokenize(self.texts)
        _start_tokens(self.clip, ids, mask.sum(1), goal)
        self._optimise(
            "texts",
            self.recipe.texts,
            Distil(self.clip).to(self.device),
            DistilBatches(ids, mask, goal, self.recipe.seed, self.accelerator),
        )

    def _optimise(self, name: str, phase: Phase, module: nn.Module, batches: Batches) -> None:
        recipe = self.recipe
        identity = {
            "model": recipe.model,
            "noised": recipe.noised and recipe.noised.model_dump(mode="json"),
            "hidden": recipe.teacher and recipe.teacher.hidden,
        }
        PhaseRun(name, phase, module, recipe, identity, self.accelerator, recipe.save_every, self._write).run(
            batches
        )

    def _write(self) -> None:
        """The model as it is now, ready for use."""
        if isinstance(self.clip, NoisedClip):
            scale = self.contrast.scale.detach().exp().clamp(max=100).item()
            net = self.clip.config.net.model_copy(update={"logit_scale": scale})
            self.clip.config = self.clip.config.model_copy(update={"net": net})
            self.clip.save(self.out / GUIDE)
        else:
            save_clip(self.clip, self.out)

    def _measure(self) -> dict[str, object]:
        self.clip.requires_grad_(False)
        self.contrast.eval()
        if isinstance(self.clip, NoisedClip):
            return measure_noised(self.clip, self.evaluation)
        return self.evaluation.measure(self.clip, self.contrast.head, self.table, self.texts)


def _start_tokens(clip: Clip, ids: torch.Tensor, length: torch.Tensor, goal: torch.Tensor) -> None:
    """A token that is a whole word starts with that word's meaning, at the usual size."""
    if not hasattr(clip.towers.model, "token_embedding"):
        return
    weight = clip.towers.model.token_embedding.weight.data
    whole = length == 3  # start, word, end
    goal = goal[whole] / goal[whole].std()
    width = min(goal.shape[1], weight.shape[1])
    weight[ids[whole, 1].to(weight.device), :width] = 0.1 * goal[:, :width].to(weight)


def model_of(recipe: ClipRecipe) -> Clip | NoisedClip:
    """What a recipe trains, at its start. Raises ``ConfigError`` for what could not be loaded again."""
    if recipe.noised is not None:
        return _noised(recipe)
    if recipe.start is None:
        return build_clip(recipe.model, recipe.mean, recipe.std)
    clip = load_clip(recipe.start)
    if clip.image_size is None:
        raise ConfigError(f"{recipe.start} has no image tower; training.clip needs both")
    if isinstance(clip.towers, OpenClipTowers) and not _can_be_rebuilt(clip):
        raise ConfigError(
            f"{recipe.start} has towers that cannot be saved as a folder here; start from a "
            "CLIP with OpenCLIP's plain towers, or from one of transformers"
        )
    return clip


def _checkpoint(clip: Clip | NoisedClip) -> None:
    """Gradient checkpointing: our own blocks', or as the library does it that the model comes from."""
    for module in clip.modules():
        if isinstance(module, Unit):
            module.checkpointing = True
    towers = getattr(clip, "towers", None)
    if isinstance(towers, OpenClipTowers):
        towers.model.set_grad_checkpointing(True)
    elif isinstance(towers, TransformersTowers):
        towers.model.gradient_checkpointing_enable()


def _can_be_rebuilt(clip: Clip) -> bool:
    """Whether `load_clip` will build from its config what `save_clip` writes."""

    def shapes(model: nn.Module) -> dict:
        return {name: value.shape for name, value in model.state_dict().items()}

    try:
        with torch.device("meta"):
            again = build_clip(clip.towers.config)
    except (TypeError, ValueError, KeyError):
        return False
    return shapes(again.towers.model) == shapes(clip.towers.model)


def _noised(recipe: ClipRecipe) -> NoisedClip:
    if recipe.start is None:
        return NoisedClip(recipe.noised)
    clip = load_noised_clip(recipe.start)
    wanted, other = (
        config.model_dump(exclude={"net": {"logit_scale", "attention"}})
        for config in (recipe.noised, clip.config)
    )
    if wanted != other:
        raise ConfigError(f"{recipe.start} is another noised CLIP than the recipe's: {other}")
    return clip
