"""Train a CLIP: an image tower and a text tower that meet in one space.

    python -m training.clip configs/icons/clip.yaml
    python -m training.clip configs/icons/clip.yaml images.samples=20000 --dry-run
    accelerate launch -m training.clip configs/clip.yaml model=null data.size=224 \\
        start=open_clip:ViT-B-32@laion2b_s34b_b79k

From nothing, or with ``start`` from any CLIP that ``load_clip`` takes. Without a teacher both towers learn
together from captions (Radford et al. 2021, arXiv:2103.00020), against the captions of all processes. With
one, the image tower first learns to find the teacher's frozen caption vectors, seen through a smooth map;
then the text tower learns to say, of any text, where that map puts it. So words that no caption holds land
beside those that mean the same. With ``noised``, pictures are noised and the image tower is told how much
(Nichol et al. 2021, section 2.4): such a CLIP guides a decoder. The same command again continues the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration
from pydantic import Field, model_validator
from torch import nn

from training.clip_batches import ContrastBatches, DistilBatches
from training.clip_data import Evaluation, build_pool, measure_noised, teacher_table, vocabulary_of
from training.clip_parts import ClipContrast, Distil, Head, NoisedContrast
from training.clip_phase import Batches, Phase, PhaseRun, Stopped
from training.data import DataConfig, Source
from training.programs import program, run, wants_bf16
from unclip.checkpoint import written_aside
from unclip.clip import Clip, build_clip, load_clip, save_clip
from unclip.config import Config, ConfigError, to_yaml
from unclip.nets.blocks import Unit
from unclip.noised_clip import NoisedClip, NoisedClipStageConfig, load_noised_clip
from unclip.towers import OpenClipTowers, TransformersTowers

GUIDE = "noised_clip.safetensors"


class TeacherConfig(Config):
    """What is asked of the sentence encoder."""

    vocabulary: int = Field(75_000, ge=0)  # everyday words and phrases, besides the captions
    noise: float = Field(0.3, ge=0)        # length of the noise on its unit vectors, for the images
    hidden: int = Field(0, ge=0)           # width of the map's bent part; 0 = a linear map


class ClipRecipe(Config):
    """Everything that `training.clip` needs."""

    out: str                                # folder of the run; on a disk that all machines share
    model: dict | str | None = None         # an OpenCLIP model_cfg, or the name of one
    noised: NoisedClipStageConfig | None = None  # a CLIP of noised pictures in its place
    start: str | None = None                # weights: as `load_clip` takes them; of `noised`, a file of one
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pictures in [0, 1]; `start` has its own
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    data: DataConfig
    augment: bool = True                    # turn, shift and brighten the pictures a little
    distinct: int | None = Field(None, gt=0)  # pictures drawn once and kept in memory; None: new ones
    cache: str | None = None                # folder for what is computed once; None: that of the run
    images: Phase
    teacher: TeacherConfig | None = None    # needs `distinct`
    texts: Phase | None = None              # the text tower's own phase; needs a teacher
    same: float = Field(0.5, ge=0)          # share of a picture's probability for another of its name
    unseen: dict[str, list[str]] = {}       # word -> names that should be among its first five
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    checkpointing: bool = False             # less memory: the backward pass computes a third more
    seed: int = 0
    save_every: int = Field(50_000, gt=0)   # samples

    @model_validator(mode="after")
    def _fits(self) -> ClipRecipe:
        if self.teacher is not None and self.distinct is None:
            raise ValueError("a teacher needs `distinct`: its vectors are computed once, for kept pictures")
        if self.texts is not None and self.teacher is None:
            raise ValueError("`texts` is the phase in which a teacher is followed; there is no teacher")
        if self.noised is not None and (self.teacher or self.model):
            raise ValueError("`noised` says what is built and learns from captions: leave out model, teacher")
        if self.noised is None and (self.model is None) == (self.start is None):
            raise ValueError("either `model` says what is built, or `start` what is loaded")
        return self


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
        return ClipContrast(self.clip, Head(known, self.clip.embed_dim, self.recipe.teacher.hidden),
                            self.recipe.same)

    def train(self) -> dict[str, object]:
        """Both phases; returns the metrics, which also lie in `metrics.json`. `Stopped` if a signal came."""
        recipe = self.recipe
        vectors = None if self.table is None else self.table[self.row]
        self._optimise("images", recipe.images, self.contrast, ContrastBatches(
            recipe, self.clip.tokenize, self.source, self.accelerator, self.pool, vectors))
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
        self._optimise("texts", self.recipe.texts, Distil(self.clip).to(self.device),
                       DistilBatches(ids, mask, goal, self.recipe.seed, self.accelerator))

    def _optimise(self, name: str, phase: Phase, module: nn.Module, batches: Batches) -> None:
        recipe = self.recipe
        identity = {"model": recipe.model, "noised": recipe.noised and recipe.noised.model_dump(mode="json"),
                    "hidden": recipe.teacher and recipe.teacher.hidden}
        PhaseRun(name, phase, module, recipe, identity, self.accelerator, recipe.save_every,
                 self._write).run(batches)

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
        raise ConfigError(f"{recipe.start} has towers that cannot be saved as a folder here; start from a "
                          "CLIP with OpenCLIP's plain towers, or from one of transformers")
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
    wanted, found = (config.model_dump(exclude={"net": {"logit_scale", "attention"}})
                     for config in (recipe.noised, clip.config))
    if wanted != found:
        raise ConfigError(f"{recipe.start} is another noised CLIP than the recipe's: {found}")
    return clip


def main(argv: list[str] | None = None) -> None:
    recipe = program(ClipRecipe, __doc__, argv)
    if recipe is None:
        return
    # each phase leaves the other's tower alone
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if wants_bf16(recipe.precision) else "no", log_with="tensorboard",
        project_config=ProjectConfiguration(recipe.out, logging_dir=recipe.out), kwargs_handlers=[unused])
    if accelerator.is_main_process:
        with written_aside(Path(recipe.out) / "recipe.yaml") as aside:
            aside.write_text(to_yaml(recipe), encoding="utf-8")
    try:
        metrics = Trainer(recipe, accelerator).train()
    except Stopped as stopped:
        accelerator.end_training()
        accelerator.print(stopped)
        return
    if accelerator.is_main_process:
        print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    run(main)
