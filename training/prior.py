"""Train the diffusion prior: CLIP image embeddings from text.

    python -m training.prior configs/icons/prior.yaml
    python -m training.prior configs/icons/prior.yaml train.batch_size=256 --dry-run
    accelerate launch -m training.prior configs/icons/prior.yaml

Pictures are embedded once, at the start (``embeddings`` of them, by every process for itself); the
prior then learns from these without pictures. The same command again continues the run.
``out/prior.safetensors`` is ready for use at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from unclip.clip import load_clip
from unclip.config import Config, ConfigError
from unclip.data.images import grid
from unclip.diffusion.noise import Noise, fold
from unclip.stages import Conditions, Prior, PriorStageConfig

from .data import DataConfig, Source
from .loop import Examples, Training, make_accelerator, micro_batch, train
from .programs import program, run


class PriorRecipe(Config):
    """The prior: its data, its frozen CLIP, its training."""

    clip: str                                  # as ``unclip.clip.load_clip`` takes it
    data: DataConfig
    embeddings: int = Field(50_000, gt=0)      # pictures embedded at the start, to learn from
    stage: PriorStageConfig
    train: Training


@dataclass(frozen=True)
class Bank:
    """Embedded pictures: embed [M,D] of length 1, captions, and thumbnails uint8 [K,3,S,S] of the first K."""

    embed: Tensor
    caption: list[str]
    thumbnail: Tensor


class PriorTask:
    """Captions and image embeddings -> what the prior is trained on."""

    def __init__(self, recipe: PriorRecipe, stage: Prior, accelerator: Accelerator) -> None:
        self.recipe, self.stage, self.accelerator = recipe, stage, accelerator
        self.device = accelerator.device
        self.clip = load_clip(recipe.clip).to(self.device)
        net = stage.config.net
        for name, wanted, given in (("embed_dim", net.embed_dim, self.clip.embed_dim),
                                    ("text_dim", net.text_dim, self.clip.text_dim)):
            if wanted != given:
                raise ConfigError(f"stage.net.{name} is {wanted}, but {recipe.clip} has {given}")
        source = Source(recipe.data, recipe.train.seed, accelerator.process_index, accelerator.num_processes)
        self.bank = self._embed_pictures(source)
        self.heldout = self._embed_heldout(source)
        stage.set_statistics(self.bank.embed.mean(0), self.bank.embed.std(0))
        if stage.network.memory is not None:
            stage.set_memory(*self._names(source, net.memory))
        stage.facts["clip"] = self.clip.identity

    @torch.no_grad()
    def _embed(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.clip.encode_image(image.to(self.device)).float()

    def _embed_pictures(self, source: Source, n: int = 256, thumbnails: int = 4096) -> Bank:
        """The training set: each picture's embedding with its caption."""
        embeds, captions, kept, held = [], [], [], 0
        batches = source.batches(n)
        total = -(-self.recipe.embeddings // n)
        for _ in tqdm(range(total), unit_scale=n, unit="pic", desc="embedding",
                      disable=not self.accelerator.is_main_process):
            batch = next(batches)
            embeds.append(self._embed(batch.image))
            captions += batch.caption
            if held < thumbnails:
                kept.append(((batch.image + 1) * 127.5).round().to(torch.uint8))
                held += n
        return Bank(torch.cat(embeds), captions, torch.cat(kept))

    @torch.no_grad()
    def _names(self, source: Source, slots: int) -> tuple[Tensor, Tensor]:
        """Mean embeddings [K,D] of the texts and of the pictures of each name, for at most ``slots``."""
        number: dict[str, int] = {}
        rows, texts, images = [], [], []
        for names, batch in tqdm(source.once(256), desc="remembering", unit_scale=256, unit="pic",
                                 disable=not self.accelerator.is_main_process):
            rows += [number.setdefault(name, len(number)) for name in names]
            texts.append(self.conditions(batch.caption)["text_embed"])
            images.append(self._embed(batch.image))
        row = torch.tensor(rows, device=self.device)
        count = torch.bincount(row)[:, None]
        kept = torch.randperm(len(number), generator=torch.Generator().manual_seed(0))[:slots].sort().values
        def mean(parts: list[Tensor]) -> Tensor:
            embed = torch.cat(parts)
            return (embed.new_zeros(len(number), embed.shape[1]).index_add(0, row, embed) / count)[kept]
        return mean(texts), mean(images)

    def _embed_heldout(self, source: Source) -> Bank | None:
        batch = source.heldout(512)
        if batch is None:
            return None
        parts = [self._embed(part) for part in batch.image.split(128)]
        return Bank(torch.cat(parts), batch.caption, batch.image)

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> Conditions:
        with self.accelerator.autocast():
            text = self.clip.encode_text(captions).trimmed()
        return self.stage.conditions(text.embed.float(), text.tokens.float(), text.mask)

    def batches(self, start: int) -> Iterator[Examples]:
        """Rows of the bank drawn at random; batch k depends on (seed, rank, k) alone."""
        n, rank = micro_batch(self.recipe.train, self.accelerator), self.accelerator.process_index
        generator = torch.Generator()
        while True:
            generator.manual_seed(fold(self.recipe.train.seed, rank, start))
            rows = torch.randint(len(self.bank.embed), (n,), generator=generator)
            embed = self.bank.embed[rows.to(self.device)]
            yield self.stage.whiten(embed), self.conditions([self.bank.caption[i] for i in rows.tolist()])
            start += 1

    def validation(self) -> list[Examples]:
        if self.heldout is None:
            return []
        return [(self.stage.whiten(self.heldout.embed), self.conditions(self.heldout.caption))]

    @torch.no_grad()
    def draw(self, stage: Prior) -> Image.Image:
        """A row a caption: the six training pictures nearest to its sampled embedding."""
        captions = (self.heldout or self.bank).caption[:16]
        noise = Noise(range(len(captions)), device=self.device)
        embed = stage.sample(self.conditions(captions), noise)
        known = self.bank.embed[: len(self.bank.thumbnail)]
        nearest = (embed.float() @ known.T).topk(6, dim=1).indices.flatten().cpu()
        pictures = self.bank.thumbnail[nearest].float() / 127.5 - 1
        return grid(pictures, columns=6)


def main(argv: list[str] | None = None) -> None:
    recipe = program(PriorRecipe, __doc__, argv)
    if recipe is None:
        return
    accelerator = make_accelerator(recipe.train)
    torch.manual_seed(recipe.train.seed)
    stage = Prior(recipe.stage).to(accelerator.device)
    train(stage, PriorTask(recipe, stage, accelerator), recipe.train, recipe, accelerator)


if __name__ == "__main__":
    run(main)
