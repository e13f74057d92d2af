"""Train a CLIP: an image tower and a text tower that meet in one space.

    python -m training.clip configs/icons/clip.yaml
    python -m training.clip configs/icons/clip.yaml images.pictures=20000 --dry-run
    accelerate launch -m training.clip configs/icons/clip.yaml

Without a teacher both towers learn together from captions (Radford et al. 2021, arXiv:2103.00020).
With one, the image tower first learns to find the teacher's frozen caption vectors, seen through a
linear map; then the text tower learns to say, of any text, where that map puts it. So words that
no caption holds land beside those that mean the same. The same command again continues the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from training.clip_data import Evaluation, Pool, augment, build_pool, teacher_table, vocabulary_of
from training.data import DataConfig, Source
from training.programs import program, run
from unclip.checkpoint import written_aside
from unclip.clip import Clip, build_clip, save_clip
from unclip.config import Config, to_yaml
from unclip.diffusion.noise import fold
from unclip.hardware import has_fast_bf16


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


class ClipRecipe(Config):
    """Everything that `training.clip` needs."""

    out: str                                # folder of the run
    model: dict | str                       # an OpenCLIP model_cfg, or the name of one
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    data: DataConfig
    distinct: int = Field(24_000, gt=0)     # different pictures that are drawn, then kept in memory
    cache: str | None = None                # folder for what is computed once; None: that of the run
    images: Phase
    teacher: TeacherConfig | None = None
    texts: Phase | None = None              # the text tower's own phase; needs a teacher
    same: float = Field(0.5, ge=0)          # share of a picture's probability for another of its name
    unseen: dict[str, list[str]] = {}       # word -> names that should be among its first five
    precision: str = "auto"                 # auto, bf16 or fp32
    seed: int = 0
    save_every: int = Field(50_000, gt=0)


def contrastive(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), with soft targets.

    image, text: [N, D] of unit norm. same: [N, N], how far pair i's text also fits image j;
    its rows are normalised. Returns a scalar.
    """
    logits = scale * image @ text.T                                      # [N, N]
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Contrast(nn.Module):
    """The first phase: pictures against their captions, encoded here or by the teacher."""

    def __init__(self, clip: Clip, teacher_dim: int | None) -> None:
        super().__init__()
        self.towers, self.preprocess = clip.towers, clip.preprocess
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.head = None if teacher_dim is None else nn.Linear(teacher_dim, clip.embed_dim)

    def place(self, vectors: Tensor) -> Tensor:
        """The teacher's vectors [N, T] in the common space: [N, D] of unit norm."""
        return F.normalize(self.head(vectors).float(), dim=-1)

    def forward(self, images: Tensor, texts: tuple[Tensor, ...], same: Tensor) -> Tensor:
        """texts: the teacher's vectors, or token ids and mask."""
        image = F.normalize(self.towers.image(self.preprocess(images)).float(), dim=-1)
        if self.head is not None:
            text = self.place(*texts)
        else:
            text = F.normalize(self.towers.text(*texts)[0].float(), dim=-1)
        return contrastive(image, text, self.scale.exp().clamp(max=100), same)


class Distil(nn.Module):
    """The second phase: the text tower says where a text lies."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.towers = clip.towers

    def forward(self, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        said = F.normalize(self.towers.text(ids, mask)[0].float(), dim=-1)
        logits = 20 * said @ goal.T
        own = torch.arange(len(goal), device=goal.device)
        return (1 - (said * goal).sum(1)).mean() + 0.1 * F.cross_entropy(logits, own)


class Trainer:
    """One run: builds what it needs, runs the phases, writes the model."""

    def __init__(self, recipe: ClipRecipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator, self.out = recipe, accelerator, Path(recipe.out)
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.cache = Path(recipe.cache or recipe.out)
        torch.manual_seed(recipe.seed)
        self.clip = build_clip(recipe.model, recipe.mean, recipe.std).to(self.device)
        self.clip.requires_grad_(True)
        source = Source(recipe.data, recipe.seed)
        self.evaluation = Evaluation(recipe.data, source, recipe.unseen)
        with accelerator.main_process_first():
            self.pool: Pool = build_pool(source, recipe, self.cache)
            self.texts, self.table = list(dict.fromkeys(self.pool.caption)), None
            if recipe.teacher is not None:
                words = vocabulary_of(recipe.teacher.vocabulary, self.clip, self.cache)
                self.table = teacher_table((self.texts, words), self.cache, self.device)
                self.texts = self.texts + words
        row = {text: i for i, text in reversed(list(enumerate(self.texts)))}  # the first of equals
        self.row = torch.tensor([row[caption] for caption in self.pool.caption])
        self.contrast = Contrast(self.clip, None if self.table is None else self.table.shape[1])
        self.contrast.to(self.device)
        if self.table is not None:
            self._start_head()
        accelerator.init_trackers("curves")

    def _start_head(self) -> None:
        """The captions' principal directions, half whitened: a good linear map before any training."""
        vectors = self.table[self.row.unique()].float()
        mean, head = vectors.mean(0), self.contrast.head
        basis, spread, _ = torch.linalg.svd((vectors - mean).T @ (vectors - mean) / len(vectors))
        weight = (basis * spread**-0.25)[:, : head.out_features].T
        head.weight.data.copy_(weight)
        head.bias.data.copy_(-weight @ mean)

    def train(self) -> dict[str, float]:
        """Both phases; returns the metrics, which also lie in `metrics.json`."""
        recipe = self.recipe
        self.optimise("images", recipe.images, self.contrast, self._contrast_batch)
        if recipe.texts is not None and self.table is not None:
            with torch.no_grad():
                self.goal = self.contrast.place(self.table.float().to(self.device)).cpu()
            self.ids, self.mask = self.clip.tokenize(self.texts)
            self.length = self.mask.sum(1)
            self._start_tokens()
            self.optimise("texts", recipe.texts, Distil(self.clip).to(self.device), self._distil_batch)
        self.clip.towers.model.logit_scale.data.copy_(self.contrast.scale.data)
        metrics = {}
        if self.accelerator.is_main_process:
            self.clip.requires_grad_(False).eval()
            save_clip(self.clip, self.out)
            metrics = self.evaluation.measure(self.clip, self.contrast, self.table, self.texts)
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

    def _contrast_batch(self, generator: torch.Generator, n: int) -> tuple:
        chosen = torch.randint(len(self.row), (n,), generator=generator)
        images = augment(self.pool.image[chosen].to(self.device).float() / 127.5 - 1, generator)
        group, rows = self.pool.group[chosen], self.row[chosen]
        same = (group[:, None] == group) * self.recipe.same
        same = torch.where(rows[:, None] == rows, 1.0, same).to(self.device)
        if self.table is None:
            ids, mask = self.clip.tokenize([self.pool.caption[i] for i in chosen.tolist()])
            return images, (ids.to(self.device), mask.to(self.device)), same
        vectors = self.table[rows].float()
        noise = torch.randn(vectors.shape, generator=generator) * vectors.shape[1] ** -0.5
        vectors = (vectors + self.recipe.teacher.noise * noise).to(self.device)
        return images, (vectors,), same

    def _distil_batch(self, generator: torch.Generator, n: int) -> tuple:
        """Texts of nearly the same length, so that little padding is computed."""
        chosen = torch.randint(len(self.texts), (16 * n,), generator=generator)
        chosen = chosen[self.length[chosen].argsort()]
        start = int(torch.randint(16, (), generator=generator)) * n
        chosen = chosen[start : start + n]
        return tuple(x[chosen].to(self.device) for x in (self.ids, self.mask, self.goal))

    def optimise(self, name: str, phase: Phase, module: nn.Module, batch: Callable[..., tuple]) -> None:
        """Minimises `module(*batch(generator, n))`, from where the last run left it."""
        world = self.accelerator.num_processes
        steps, n = math.ceil(phase.samples / phase.batch_size), max(1, phase.batch_size // world)
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [{"params": [p for p in parameters if p.dim() > 1]},
                  {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, phase.beta2),
                                      weight_decay=phase.weight_decay)
        path, step = self.out / f"state-{name}.pt", 0
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        wrapped, optimizer = self.accelerator.prepare(module, optimizer)
        wrapped.train()
        bar = tqdm(total=steps * phase.batch_size, initial=step * phase.batch_size, desc=name,
                   unit="sample", unit_scale=True, disable=not self.accelerator.is_main_process)
        for step in range(step, steps):
            seen = step * phase.batch_size
            rate = 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (seen + 1) / max(1, phase.warmup))
            for group in optimizer.param_groups:
                group["lr"] = rate * phase.learning_rate
            generator = torch.Generator().manual_seed(fold(self.recipe.seed, self.rank, step))
            with self.accelerator.autocast():
                loss = wrapped(*batch(generator, n))
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(phase.batch_size)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
                self.accelerator.log({f"{name}/loss": loss.item(), f"{name}/rate": rate}, step=seen)
            last = step + 1 == steps
            if last or seen // self.recipe.save_every < (seen + phase.batch_size) // self.recipe.save_every:
                if self.accelerator.is_main_process:
                    with written_aside(path) as aside:
                        torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(),
                                    "step": step + 1}, aside)
        bar.close()
        self.accelerator.free_memory()


def main(argv: list[str] | None = None) -> None:
    recipe = program(ClipRecipe, __doc__, argv)
    if recipe is None:
        return
    device = PartialState().device
    bf16 = has_fast_bf16(device) if recipe.precision == "auto" else recipe.precision == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", log_with="tensorboard",
                              project_dir=recipe.out)
    with written_aside(Path(recipe.out) / "recipe.yaml") as aside:
        aside.write_text(to_yaml(recipe), encoding="utf-8")
    metrics = Trainer(recipe, accelerator).train()
    if accelerator.is_main_process:
        print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    run(main)
