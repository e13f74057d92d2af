"""A prior's training from embeddings that were made before: no pictures, and mostly no CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from unclip.clip import load_clip
from unclip.config import ConfigError
from unclip.data.batches import padded
from unclip.data.order import Order
from unclip.stages import AnyPrior, ARPrior, Conditions

from ..data.embeddings import Embeddings, Rows
from ..run.examples import Examples
from ..run.settings import micro_batch
from ..streams import Purpose, numbers, seed_of
from .frozen import check_widths
from .prior import CODED

if TYPE_CHECKING:
    from .recipes import PriorRecipe


Pair = tuple[Rows, int]  # a shard's embeddings, and the row of a caption


class RowsTask:
    """Embedded captions and pictures -> what the prior is trained on.

    Every caption, with its picture, is seen once an epoch, in an order that (seed, number) alone gives.
    CLIP is loaded only where ``training.embed`` has not kept the text encoder's states.
    """

    def __init__(self, recipe: PriorRecipe, stage: AnyPrior, accelerator: Accelerator) -> None:
        self.recipe, self.stage, self.accelerator = recipe, stage, accelerator
        self.device, self.clip = accelerator.device, None
        self.rows = rows = Embeddings(recipe.data.embeddings)
        self.names, self.order = rows.names(recipe.data.shards), {}
        self.listing = {str(path): path.stat().st_size for path in map(rows.path, self.names)}
        self.heldout = rows.names(recipe.data.heldout)
        counts = [rows.files[name]["captions"] for name in self.names]
        window = recipe.data.shuffle
        self.places = Order(counts, window, seed_of(recipe.train.seed, Purpose.SAMPLE, 0))
        rows.capacity = 8 + window // max(1, sum(counts) // len(counts))  # as far as a window reaches
        self._check()
        stage.set_statistics(rows.mean, rows.std)
        if isinstance(stage, ARPrior):
            stage.set_codes(*self._pairs(CODED))
        if stage.network.memory is not None:
            stage.set_memory(*self._remembered(stage.config.net.memory))
        stage.facts["clip"] = rows.clip

    def _check(self) -> None:
        """Refuse embeddings of another CLIP, or of other widths than the prior's."""
        rows, source, net = self.rows, self.recipe.clip, self.stage.config.net
        if rows.tokens:
            rows.check_clip(source)
        elif source is None:
            raise ConfigError(
                f"{rows.folder} holds no states of the text encoder: make it with "
                "training.embed --tokens, or name the clip, to be loaded for the captions"
            )
        else:
            self.clip = load_clip(source).to(self.device)
            rows.check(self.clip.identity, source)
        text_dim = rows.text_dim if self.clip is None else self.clip.text_dim
        check_widths(str(rows.folder), embed_dim=(net.embed_dim, rows.dim), text_dim=(net.text_dim, text_dim))

    def _pairs(self, most: int) -> tuple[Tensor, Tensor]:
        """The first captions' embeddings, and those of their pictures, [K,D] each."""
        texts, images = [], []
        for name in self.names:
            rows = self.rows[name]
            texts.append(rows.text)
            images.append(rows.image[rows.picture])
            if sum(map(len, texts)) >= most:
                break
        return torch.cat(texts)[:most], torch.cat(images)[:most]

    def _remembered(self, slots: int) -> tuple[Tensor, Tensor]:
        """Mean embeddings [K,D] of the texts and of the pictures of each caption, for at most ``slots``."""
        sums: dict[str, list] = {}
        for name in self.names:
            rows = self.rows[name]
            for caption, text, row in zip(rows.captions, rows.text, rows.picture.tolist(), strict=True):
                if caption in sums:
                    sums[caption][1] += rows.image[row]
                    sums[caption][2] += 1
                else:
                    sums[caption] = [text.clone(), rows.image[row].clone(), 1]
        order = torch.randperm(len(sums), generator=torch.Generator().manual_seed(0))[:slots].sort().values
        known = list(sums.values())
        means = [known[place] for place in order.tolist()]
        return (
            torch.stack([text for text, _, _ in means]).to(self.device),
            torch.stack([image / of for _, image, of in means]).to(self.device),
        )

    @torch.no_grad()
    def conditions(self, pairs: Sequence[Pair]) -> Conditions:
        """What the prior is told of captions."""
        if self.clip is not None:
            with self.accelerator.autocast():
                text = self.clip.encode_text([rows.captions[row] for rows, row in pairs]).trimmed()
            return self.stage.conditions(text.embed.float(), text.tokens.float(), text.mask)
        embed = torch.stack([rows.text[row] for rows, row in pairs])
        tokens, mask = padded([rows.states(row) for rows, row in pairs])
        return self.stage.conditions(*(x.to(self.device) for x in (embed, tokens, mask)))

    def _examples(self, pairs: Sequence[Pair]) -> Examples:
        owners = [int(rows.picture[row]) for rows, row in pairs]
        embed = torch.stack([rows.image[owner] for (rows, _), owner in zip(pairs, owners, strict=True)])
        return Examples(
            self.stage.whiten(embed.to(self.device)),
            self.conditions(pairs),
            [rows.keys[owner] for (rows, _), owner in zip(pairs, owners, strict=True)],
        )

    def batches(self, start: int) -> Iterator[Examples]:
        """This process's batches from number ``start`` on; those before are skipped by arithmetic."""
        n, accelerator = micro_batch(self.recipe.train, self.accelerator), self.accelerator
        for number in count(start):
            mine = numbers(number, n, accelerator.process_index, accelerator.num_processes)
            places = [self.places[picture] for picture in mine]
            yield self._examples([(self.rows[self.names[shard]], row) for shard, row in places])

    def validation(self) -> list[Examples]:
        """Up to 512 held-out captions, from all held-out shards alike."""
        share = -(-512 // max(1, len(self.heldout)))
        pairs = [
            (self.rows[name], row)
            for name in self.heldout
            for row in range(min(share, self.rows.files[name]["captions"]))
        ]
        return [self._examples(pairs)] if pairs else []

    def draw(self, stage: AnyPrior) -> Image.Image | None:
        """Nothing: there are no pictures here to stand for what is sampled."""
        return None
