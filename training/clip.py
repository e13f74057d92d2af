"""Train a CLIP: an image tower and a text tower that meet in one space.

    python -m training.clip configs/icons/clip.yaml
    python -m training.clip configs/icons/clip.yaml images.pictures=20000 --dry-run
    accelerate launch -m training.clip configs/icons/clip.yaml

Without a teacher both towers learn together from captions (Radford et al. 2021, arXiv:2103.00020).
With one, the image tower first learns to find the teacher's frozen caption vectors, seen through a
smooth map; then the text tower learns to say, of any text, where that map puts it. So words that
no caption holds land beside those that mean the same. The same command again continues the run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from pydantic import Field, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from training.clip_data import Evaluation, augment, build_pool, teacher_table, vocabulary_of
from training.clip_parts import Contrast, Distil, Head
from training.data import DataConfig, Source
from training.programs import program, run, wants_bf16
from unclip.checkpoint import written_aside
from unclip.clip import build_clip, save_clip
from unclip.config import Config, to_yaml
from unclip.diffusion.noise import fold


class Phase(Config):
    """One optimisation: AdamW, linear warm-up, half a cosine to zero. Counts are in samples."""

    samples: int = Field(gt=0)
    batch_size: int = Field(256, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(10_000, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)


class TeacherConfig(Config):
    """What is asked of the sentence encoder."""

    vocabulary: int = Field(75_000, ge=0)  # everyday words and phrases, besides the captions
    noise: float = Field(0.3, ge=0)        # length of the noise on its unit vectors, for the images
    hidden: int = Field(0, ge=0)           # width of the map's bent part; 0 = a linear map


class ClipRecipe(Config):
    """Everything that `training.clip` needs."""

    out: str                                # folder of the run
    model: dict | str                       # an OpenCLIP model_cfg, or the name of one
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    data: DataConfig
    distinct: int | None = Field(None, gt=0)  # pictures drawn once and kept in memory; None: new ones
    cache: str | None = None                # folder for what is computed once; None: that of the run
    images: Phase
    teacher: TeacherConfig | None = None    # needs `distinct`
    texts: Phase | None = None              # the text tower's own phase; needs a teacher
    same: float = Field(0.5, ge=0)          # share of a picture's probability for another of its name
    unseen: dict[str, list[str]] = {}       # word -> names that should be among its first five
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    seed: int = 0
    save_every: int = Field(50_000, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> ClipRecipe:
        if self.teacher is not None and self.distinct is None:
            raise ValueError("a teacher needs `distinct`: its vectors are computed once, for kept pictures")
        if self.texts is not None and self.teacher is None:
            raise ValueError("`texts` is the phase in which a teacher is followed; there is no teacher")
        return self


Batches = Callable[[int, int], Iterator[tuple]]  # (samples in a batch, number of the first) -> batches


class Trainer:
    """One run: builds what it needs, runs the phases, writes the model."""

    def __init__(self, recipe: ClipRecipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator, self.out = recipe, accelerator, Path(recipe.out)
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.cache = Path(recipe.cache or recipe.out)
        torch.manual_seed(recipe.seed)
        self.clip = build_clip(recipe.model, recipe.mean, recipe.std).to(self.device)
        self.clip.requires_grad_(True)
        self.source = Source(recipe.data, recipe.seed, self.rank, accelerator.num_processes)
        self.evaluation = Evaluation(recipe.data, self.source, recipe.unseen)
        self.pool, self.table, self.texts = None, None, []
        if recipe.distinct is not None:
            with accelerator.main_process_first():
                self._prepare_pool()
        head = None
        if self.table is not None:
            known = self.table[self.row.unique()].float()
            head = Head(known, self.clip.embed_dim, recipe.teacher.hidden)
        self.contrast = Contrast(self.clip, head).to(self.device)
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

    def train(self) -> dict[str, float]:
        """Both phases; returns the metrics, which also lie in `metrics.json`."""
        recipe = self.recipe
        self.optimise("images", recipe.images, self.contrast, self._contrast_batches)
        if recipe.texts is not None:
            with torch.no_grad():
                self.goal = self.contrast.head(self.table.float().to(self.device)).cpu()
            self.ids, self.mask = self.clip.tokenize(self.texts)
            self.length = self.mask.sum(1)
            self._start_tokens()
            self.optimise("texts", recipe.texts, Distil(self.clip).to(self.device), self._distil_batches)
        self.clip.towers.model.logit_scale.data.copy_(self.contrast.scale.data)
        metrics = {}
        if self.accelerator.is_main_process:
            self.clip.requires_grad_(False).eval()
            save_clip(self.clip, self.out)
            metrics = self.evaluation.measure(self.clip, self.contrast.head, self.table, self.texts)
            with written_aside(self.out / "metrics.json") as aside:
                aside.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        self.accelerator.end_training()
        return metrics

    def _start_tokens(self) -> None:
        """A token that is a whole word starts with that word's meaning, at the usual size."""
        if not hasattr(self.clip.towers.model, "token_embedding"):
            return
        weight = self.clip.towers.model.token_embedding.weight.data
        whole = self.length == 3  # start, word, end
        goal = self.goal[whole] / self.goal[whole].std()
        width = min(goal.shape[1], weight.shape[1])
        weight[self.ids[whole, 1].to(weight.device), :width] = 0.1 * goal[:, :width].to(weight)

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(fold(self.recipe.seed, self.rank, step))

    def _contrast_batches(self, n: int, start: int) -> Iterator[tuple]:
        """Pictures, texts, and which pairs are alike, from batch number `start` on."""
        if self.pool is None:
            for step, batch in enumerate(self.source.batches(n, start), start):
                alone = torch.arange(n)
                yield self._contrast_batch(batch.image, batch.caption, alone, self._generator(step))
        for step in itertools.count(start):
            generator = self._generator(step)
            rows = torch.randint(len(self.pool.caption), (n,), generator=generator)
            captions = [self.pool.caption[i] for i in rows.tolist()]
            images = self.pool.image[rows].float() / 127.5 - 1
            vectors = None if self.table is None else self.table[self.row[rows]].float()
            yield self._contrast_batch(images, captions, self.pool.group[rows], generator, vectors)

    def _contrast_batch(self, images: Tensor, captions: list[str], group: Tensor,
                        generator: torch.Generator, vectors: Tensor | None = None) -> tuple:
        """group: int64 [n], equal where pictures have one name. vectors: the teacher's, [n, T]."""
        same = (group[:, None] == group) * self.recipe.same
        number = {caption: i for i, caption in enumerate(captions)}
        number = torch.tensor([number[caption] for caption in captions])
        same = torch.where(number[:, None] == number, 1.0, same).to(self.device)
        images = augment(images.to(self.device), generator)
        if vectors is None:
            return images, tuple(x.to(self.device) for x in self.clip.tokenize(captions)), same
        noise = torch.randn(vectors.shape, generator=generator) * vectors.shape[1] ** -0.5
        return images, ((vectors + self.recipe.teacher.noise * noise).to(self.device),), same

    def _distil_batches(self, n: int, start: int) -> Iterator[tuple]:
        """Texts of nearly the same length, so that little padding is computed."""
        for step in itertools.count(start):
            generator = self._generator(step)
            chosen = torch.randint(len(self.texts), (16 * n,), generator=generator)
            chosen = chosen[self.length[chosen].argsort()]
            first = int(torch.randint(16, (), generator=generator)) * n
            chosen = chosen[first : first + n]
            yield tuple(x[chosen].to(self.device) for x in (self.ids, self.mask, self.goal))

    def optimise(self, name: str, phase: Phase, module: nn.Module, batches: Batches) -> None:
        """Minimises `module(*batch)`, from where the last run left it."""
        size, world = phase.batch_size, self.accelerator.num_processes
        steps = math.ceil(phase.samples / size)
        optimizer = _adam(phase, module)
        start = self._resume(name, module, optimizer)
        wrapped, prepared = self.accelerator.prepare(module, optimizer)
        wrapped.train()
        bar = tqdm(total=steps * size, initial=start * size, desc=name, unit="sample", unit_scale=True,
                   disable=not self.accelerator.is_main_process)
        endless = batches(max(1, size // world), start)  # the steps end the zip
        for step, batch in zip(range(start, steps), endless, strict=False):
            seen = (step + 1) * size
            rate = min(1, seen / max(1, phase.warmup)) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * phase.learning_rate
            with self.accelerator.autocast():
                loss = wrapped(*batch)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(module.parameters(), 1.0)
            prepared.step()
            prepared.zero_grad()
            bar.update(size)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
                self.accelerator.log({f"{name}/loss": loss.item(), f"{name}/rate": rate}, step=seen)
            if step + 1 == steps or seen // self.recipe.save_every > (seen - size) // self.recipe.save_every:
                self._save(name, module, optimizer, step + 1)
        bar.close()
        self.accelerator.free_memory()

    def _save(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if self.accelerator.is_main_process:
            with written_aside(self.out / f"state-{name}.pt") as aside:
                torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(),
                            "step": step}, aside)

    def _resume(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Takes up the state of a phase, if there is one; returns the steps that were done."""
        path = self.out / f"state-{name}.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]


def _adam(phase: Phase, module: nn.Module) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019 (arXiv:1711.05101); gains and biases do not decay."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, phase.beta2),
                             weight_decay=phase.weight_decay,
                             fused=matrices[0].device.type in ("cpu", "cuda"))


def main(argv: list[str] | None = None) -> None:
    recipe = program(ClipRecipe, __doc__, argv)
    if recipe is None:
        return
    # each phase leaves the other's tower alone
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "bf16" if wants_bf16(recipe.precision) else "no"
    accelerator = Accelerator(mixed_precision=precision, log_with="tensorboard",
                              project_dir=recipe.out, kwargs_handlers=[unused])
    with written_aside(Path(recipe.out) / "recipe.yaml") as aside:
        aside.write_text(to_yaml(recipe), encoding="utf-8")
    metrics = Trainer(recipe, accelerator).train()
    if accelerator.is_main_process:
        print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    run(main)
