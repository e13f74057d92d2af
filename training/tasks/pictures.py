"""Pictures and captions -> what a decoder, or an upsampler, is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from unclip.config import ConfigError
from unclip.data.batches import Batch, floats, shrink
from unclip.data.images import grid
from unclip.degradation.bsr import LEAST
from unclip.diffusion.noise import Noise, Random
from unclip.pipeline.conditions import conditions_of
from unclip.stages import Conditions, Decoder

from ..data.config import DataConfig
from ..data.embeddings import Embeddings, space_of
from ..data.source import Source
from ..run.examples import Examples
from ..run.settings import micro_batch
from ..streams import Purpose, numbers, streams
from .frozen import frozen_clip
from .recipes import PictureRecipe
from .tokens import tokenizer_of


class PictureTask:
    """Pictures and captions -> what a decoder is trained on."""

    def __init__(self, recipe: PictureRecipe, stage: Decoder, accelerator: Accelerator) -> None:
        self.recipe, self.stage, self.accelerator = recipe, stage, accelerator
        self.device = accelerator.device
        _check_size(recipe.data, stage)
        _check_latents(recipe.data, stage)
        self.clip, identity = frozen_clip(recipe, stage, self.device)
        with accelerator.main_process_first():  # one process makes a pool
            self.source = Source(
                recipe.data, recipe.train.seed, accelerator.process_index, accelerator.num_processes
            )
            if self.source.pool is not None and stage.takes_image:
                self.source.embed(identity, self._encoded)
        self.order, self.listing = self.source.order, getattr(self.source, "listing", {})
        if self.source.pool is not None and self.clip is not None:
            self.clip.remember(len(self.source.pool))  # its captions come again
        self.tokenizer = None
        if stage.takes_tokens:
            self.tokenizer = tokenizer_of(recipe.tokenizer, stage.config.text)
        if identity is not None:
            stage.facts["clip"] = identity
        if stage.takes_image:
            self._measure_embeddings()

    def _measure_embeddings(self, batches: int = 16, n: int = 128) -> None:
        """Mean and standard deviation of the training pictures' embeddings, for whitening.

        Every process measures the same pictures, which are those that one process would measure.
        """
        if self.source.embeds is not None:
            self.stage.set_statistics(self.source.embeds.mean(0), self.source.embeds.std(0))
            return
        if self.recipe.data.embeddings is not None:
            embeddings = Embeddings(self.recipe.data.embeddings)
            self.stage.set_statistics(embeddings.mean, embeddings.std)
            return
        source = Source(self.recipe.data, self.recipe.train.seed).batches(n)
        embeds = torch.cat([self._encoded(next(source).image) for _ in range(batches)])
        self.stage.set_statistics(embeds.mean(0), embeds.std(0))

    @torch.no_grad()
    def _encoded(self, image: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.clip.encode_image(image.to(self.device)).float()

    def conditions(self, batch: Batch, low_res: Tensor | None, picture: Tensor | None = None) -> Conditions:
        """What the stage is told about a batch; picture: [N,3,S,S] at its size, a part of which is known."""
        with self.accelerator.autocast():
            return conditions_of(self.stage, self.clip, batch, low_res, self.tokenizer, picture)

    def examples(self, batch: Batch, source: Random = None) -> Examples:
        """One batch; with random numbers the low-resolution picture is corrupted, as in training."""
        if self.recipe.data.latents and batch.embedded is not None and batch.embedded.latents is not None:
            conditions = self.conditions(batch, None)
            return Examples(batch.embedded.latents.to(self.device).float(), conditions, batch.key)
        picture = floats(batch.pixels.to(self.device))  # bytes are quicker to carry over
        low_res = None
        if self.stage.config.low_res is None:
            picture = shrink(picture, self.stage.size)
        else:
            side = picture.shape[-1] // self.stage.factor
            low_res = shrink(picture, side) if source is None else self.stage.corrupt(picture, source)
        conditions = self.conditions(batch, low_res, picture)
        return Examples(self.stage.to_data(picture, conditions), conditions, batch.key)

    def batches(self, start: int) -> Iterator[Examples]:
        n, accelerator = micro_batch(self.recipe.train, self.accelerator), self.accelerator
        for number, batch in enumerate(self.source.batches(n, start), start):
            mine = numbers(number, n, accelerator.process_index, accelerator.num_processes)
            spoil = None
            if self.stage.config.low_res is not None:
                spoil = streams(self.recipe.train.seed, Purpose.CORRUPT, mine, self.device)
            yield self.examples(batch, spoil)

    @cached_property
    def _heldout(self) -> list[Examples]:
        batch = self.source.heldout(256)
        if batch is None:
            return []
        return [self.examples(batch[i : i + 64]) for i in range(0, len(batch.image), 64)]

    def validation(self) -> list[Examples]:
        return self._heldout

    def draw(self, stage: Decoder) -> Image.Image:
        """Rows of (real, what the stage was given, drawn), 16 pictures wide."""
        if self._heldout:
            examples = self._heldout[0]
        else:
            examples = self.examples(next(self.source.batches(32)))
        columns = min(16, len(examples))
        count = min(32, len(examples) // columns * columns)  # whole rows
        conditions = {key: value[:count] for key, value in examples.conditions.items()}
        x0 = examples.x0[:count]
        *_, last = stage.sample(conditions, Noise(range(len(x0)), device=self.device))
        rows = [stage.to_picture(x0, conditions), stage.to_picture(last.x, conditions)]
        if "base" in conditions:
            rows.insert(1, conditions["base"])
        rows = [row[i : i + columns] for i in range(0, count, columns) for row in rows]
        picture = grid(torch.cat(rows).float().cpu(), columns=columns)
        scale = max(1, 64 // rows[0].shape[-1])
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _check_latents(data: DataConfig, stage: Decoder) -> None:
    """Refuse latents that are not those of the stage's own pictures."""
    if not data.latents:
        return
    if stage.config.inpaint:
        raise ConfigError("data.latents is not for a decoder that learns to fill holes: it is shown pictures")
    wanted, kept = space_of(stage), Embeddings(data.embeddings).latents
    if kept is None:
        raise ConfigError(f"{data.embeddings} holds no latents; run training.embed again, with --latents")
    if kept != wanted:
        raise ConfigError(f"{data.embeddings} holds latents of {kept}, and the stage is of {wanted}")


def _check_size(data: DataConfig, stage: Decoder) -> None:
    """Refuse pictures that the stage cannot learn from."""
    net, low_res, side = stage.config.net, stage.config.low_res, data.crop or data.size
    if low_res is None and side < stage.size:
        raise ConfigError(f"pictures of {side} pixels are smaller than the stage's {stage.size}")
    if low_res is not None and data.size != stage.size:
        raise ConfigError(f"data.size is {data.size}, but the upsampler makes {stage.size} pixels")
    if low_res is not None:
        multiple = math.lcm(net.multiple, stage.factor)
        if side % multiple:
            raise ConfigError(f"data.crop {side} is no multiple of {multiple}, as this network needs")
        if low_res.degradation == "bsr" and side < LEAST * stage.factor:
            least = LEAST * stage.factor
            raise ConfigError(
                f"data.crop {side} is too small for low_res.degradation bsr, which takes {least}"
            )
