"""Captions and pictures -> what a prior is trained on, with a CLIP at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unclip.clip import load_clip
from unclip.config import ConfigError
from unclip.data.images import grid
from unclip.diffusion.noise import Noise
from unclip.stages import AnyPrior, ARPrior, Conditions

from ..data.source import Source
from ..run.examples import Examples
from ..run.settings import micro_batch
from ..streams import Purpose, numbers, seed_of
from .frozen import check_widths
from .recipes import PriorRecipe


@dataclass(frozen=True)
class Bank:
    """Embedded pictures: embed [M,D] of length 1, captions, keys, and thumbnails uint8 [K,3,S,S] of the
    first K.
    """

    embed: Tensor
    caption: list[str]
    key: list[str]
    thumbnail: Tensor | np.ndarray  # an array where it is mapped from the disk


CODED = 8192  # pairs on which an autoregressive prior's codes are measured


def interleaved(parts: Sequence[Tensor] | Sequence[list]) -> Tensor | list:
    """The rows of processes that took turns, in the order of one: the first of each, the second, ..."""
    if isinstance(parts[0], Tensor):
        return torch.stack([*parts], 1).flatten(0, 1)
    return [row for turn in zip(*parts, strict=True) for row in turn]


class PriorTask:
    """Captions and image embeddings -> what the prior is trained on."""

    def __init__(self, recipe: PriorRecipe, stage: AnyPrior, accelerator: Accelerator) -> None:
        self.recipe, self.stage, self.accelerator = recipe, stage, accelerator
        self.device = accelerator.device
        if recipe.clip is None:
            raise ConfigError("a prior learns CLIP's embeddings; name a clip, or data.embeddings")
        self.clip = load_clip(recipe.clip).to(self.device)
        net = stage.config.net
        widths = {name: (getattr(net, name), getattr(self.clip, name)) for name in ("embed_dim", "text_dim")}
        check_widths(recipe.clip, **widths)
        with accelerator.main_process_first():  # one process makes a pool
            source = Source(recipe.data, recipe.train.seed)
            if source.pool is not None:
                source.embed(self.clip.identity, self._embed)
        self.bank = self._embed_pictures() if source.pool is None else self._pooled(source)
        self.heldout = self._embed_heldout(source)
        stage.set_statistics(self.bank.embed.mean(0), self.bank.embed.std(0))
        if isinstance(stage, ARPrior):
            pairs = self.bank.caption[:CODED]
            stage.set_codes(self._texts(pairs), self.bank.embed[: len(pairs)])
        if stage.network.memory is not None:
            texts, images = self._names(source, net.memory)
            if source.pool is not None:
                known, self.bank = self._remembered(net.memory - len(texts))
                texts, images = torch.cat([texts, known[0]]), torch.cat([images, known[1]])
            stage.set_memory(texts, images)
        stage.facts["clip"] = self.clip.identity

    @torch.no_grad()
    def _embed(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.clip.encode_image(image.to(self.device)).float()

    def _embed_pictures(self, n: int = 256, thumbnails: int = 4096) -> Bank:
        """The training set: each picture's embedding with its caption. Every process embeds its share, and
        all hold the same bank in the end: that of one process.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        source = Source(self.recipe.data, self.recipe.train.seed, rank, world)
        self.order, self.listing = source.order, getattr(source, "listing", {})
        batches = source.batches(n)
        total = n * -(-self.recipe.embeddings // n)  # whole batches
        embeds, small = [], []
        captions, keys = [], []
        for number in tqdm(
            range(-(-total // (n * world))),
            unit_scale=n * world,
            unit="pic",
            desc="embedding",
            disable=not self.accelerator.is_main_process,
        ):
            batch = next(batches)
            embeds.append(self._embed(batch.image).cpu())
            shown = batch.image[: max(0, -(-thumbnails // world) - number * n)]
            small.append(((shown + 1) * 127.5).round().to(torch.uint8))
            captions += batch.caption
            keys += batch.key
        every = gather_object([(torch.cat(embeds), captions, keys, torch.cat(small))])
        embed, captions, keys, small = (interleaved(parts)[:total] for parts in zip(*every, strict=True))
        return Bank(embed.to(self.device), captions, keys, small)

    def _pooled(self, source: Source) -> Bank:
        """The whole pool as the training set."""
        self.order, self.listing = source.order, getattr(source, "listing", {})
        pool = source.pool
        self.clip.remember(len(pool))
        return Bank(source.embeds.to(self.device), pool.caption, pool.key, pool.image)

    def _texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions [K,D]."""
        parts = [self.conditions(captions[i : i + 256])["text_embed"] for i in range(0, len(captions), 256)]
        return torch.cat([self.bank.embed[:0], *parts])

    @torch.no_grad()
    def _remembered(self, slots: int) -> tuple[tuple[Tensor, Tensor], Bank]:
        """The first scenes of a pool, for at most ``slots`` of the memory, as embeddings of their texts and
        pictures [K,D]; and the others, to learn from: none is to be learnt from its own memory.
        """
        bank = self.bank
        slots = min(slots, len(bank.key) // 2)
        texts = self._texts(bank.caption[:slots])
        rest = Bank(bank.embed[slots:], bank.caption[slots:], bank.key[slots:], bank.thumbnail[slots:])
        return (texts, bank.embed[:slots]), rest

    @torch.no_grad()
    def _names(self, source: Source, slots: int) -> tuple[Tensor, Tensor]:
        """Mean embeddings [K,D] of the texts and of the pictures of each name, for at most ``slots``."""
        number: dict[str, int] = {}
        rows, texts, images = [], [], []
        for names, batch in tqdm(
            source.once(256),
            desc="remembering",
            unit_scale=256,
            unit="pic",
            disable=not self.accelerator.is_main_process,
        ):
            rows += [number.setdefault(name, len(number)) for name in names]
            texts.append(self.conditions(batch.caption)["text_embed"])
            images.append(self._embed(batch.image))
        row = torch.tensor(list(rows), device=self.device)
        count = torch.bincount(row)[:, None]
        chosen = torch.randperm(len(number), generator=torch.Generator().manual_seed(0))[:slots].sort().values

        def mean(parts: list[Tensor]) -> Tensor:
            embed = torch.cat(parts)
            return (embed.new_zeros(len(number), embed.shape[1]).index_add(0, row, embed) / count)[chosen]

        return mean(texts), mean(images)

    def _embed_heldout(self, source: Source) -> Bank | None:
        batch = source.heldout(512)
        if batch is None:
            return None
        parts = [self._embed(part) for part in batch.image.split(128)]
        return Bank(torch.cat(parts), batch.caption, batch.key, batch.image)

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> Conditions:
        with self.accelerator.autocast():
            text = self.clip.encode_text(captions).trimmed()
        return self.stage.conditions(text.embed.float(), text.tokens.float(), text.mask)

    def batches(self, start: int) -> Iterator[Examples]:
        """Rows of the bank drawn at random; each depends on the seed and the picture's number alone."""
        n, accelerator = micro_batch(self.recipe.train, self.accelerator), self.accelerator
        seed, bank = self.recipe.train.seed, self.bank
        for number in count(start):
            mine = numbers(number, n, accelerator.process_index, accelerator.num_processes)
            rows = [seed_of(seed, Purpose.SAMPLE, picture) % len(bank.embed) for picture in mine]
            yield self._examples(bank, rows)

    def _examples(self, bank: Bank, rows: Sequence[int]) -> Examples:
        embed = bank.embed[torch.tensor(list(rows), device=self.device)]
        return Examples(
            self.stage.whiten(embed),
            self.conditions([bank.caption[row] for row in rows]),
            [bank.key[row] for row in rows],
        )

    def validation(self) -> list[Examples]:
        return [] if self.heldout is None else [self._examples(self.heldout, range(len(self.heldout.embed)))]

    @torch.no_grad()
    def draw(self, stage: AnyPrior) -> Image.Image:
        """A row a caption: the six training pictures nearest to its sampled embedding."""
        captions = (self.heldout or self.bank).caption[:16]
        noise = Noise(range(len(captions)), device=self.device)
        embed = stage.sample(self.conditions(captions), noise)
        known = self.bank.embed[: len(self.bank.thumbnail)]
        nearest = (embed.float() @ known.T).topk(6, dim=1).indices.flatten().tolist()
        return grid(torch.as_tensor(self.bank.thumbnail[nearest]).float() / 127.5 - 1, columns=6)
