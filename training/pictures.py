"""What the decoder's and the upsampler's programs share: both learn pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from unclip.clip import Clip
from unclip.config import Config, ConfigError
from unclip.data.images import grid
from unclip.diffusion.noise import Noise, Random
from unclip.stages import Conditions, Decoder, DecoderStageConfig
from unclip.tokenizer import GlideTokenizer

from .data import Batch, DataConfig, Source
from .embeddings import Embeddings
from .frozen import frozen_clip
from .loop import Examples, Training, make_accelerator, micro_batch, train
from .programs import program
from .start import begin
from .streams import Purpose, numbers, streams
from .tokens import tokenizer_of

TOKENIZER = "tokenizer"  # folder of a run, beside the checkpoint


class PictureRecipe(Config):
    """A decoder or an upsampler: its data, its frozen CLIP (None if it needs none), its training."""

    clip: str | None = None   # as ``unclip.clip.load_clip`` takes it
    tokenizer: str | None = None  # of a stage with a text transformer: ``glide``, or a folder
    data: DataConfig
    start: str | None = None  # a checkpoint whose weights a new run begins with; None = chance
    stage: DecoderStageConfig
    train: Training


class PictureTask:
    """Pictures and captions -> what a decoder is trained on."""

    def __init__(self, recipe: PictureRecipe, stage: Decoder, accelerator: Accelerator) -> None:
        self.recipe, self.stage, self.accelerator = recipe, stage, accelerator
        self.device = accelerator.device
        _check_size(recipe.data, stage)
        self.clip, identity = frozen_clip(recipe, stage, self.device)
        with accelerator.main_process_first():  # one process makes a pool
            self.source = Source(recipe.data, recipe.train.seed, accelerator.process_index,
                                 accelerator.num_processes)
            if self.source.pool is not None and stage.takes_image:
                self.source.embed(identity, self._encoded)
        self.order = self.source.order
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
            found = Embeddings(self.recipe.data.embeddings)
            self.stage.set_statistics(found.mean, found.std)
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
        picture = batch.image.to(self.device)
        low_res, config = None, self.stage.config.low_res
        if config is None:
            picture = shrink(picture, self.stage.size)
        else:
            factor = self.stage.size // config.size
            low_res = shrink(picture, picture.shape[-1] // factor)
            low_res = low_res if source is None else self.stage.corrupt(low_res, source)
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
        return [self.examples(batch[i:i + 64]) for i in range(0, len(batch.image), 64)]

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
        rows = [row[i:i + columns] for i in range(0, count, columns) for row in rows]
        picture = grid(torch.cat(rows).float().cpu(), columns=columns)
        scale = max(1, 64 // rows[0].shape[-1])
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


@torch.no_grad()
def conditions_of(stage: Decoder, clip: Clip | None, batch: Batch, low_res: Tensor | None,
                  tokenizer: GlideTokenizer | None = None, picture: Tensor | None = None) -> Conditions:
    """What a stage is told about a batch: its embeddings, captions, classes and the pictures themselves
    [N,3,S,S] (to inpaint), as far as it takes them.

    Raises ``ConfigError`` if the pictures have no class, or one that the stage does not know.
    """
    told: dict[str, Tensor] = {}
    device, embedded = stage.embed_mean.device, batch.embedded
    if stage.takes_image:
        told["image_embed"] = (clip.encode_image(batch.image.to(device)) if embedded is None
                               else embedded.image.to(device))
    if stage.takes_text or stage.takes_text_embed:
        if embedded is None or clip is not None:
            text = clip.encode_text(batch.caption).trimmed()
            told |= {"text": text.tokens, "text_mask": text.mask, "text_embed": text.embed}
        else:
            told |= {"text": embedded.tokens, "text_mask": embedded.mask, "text_embed": embedded.text}
            told = {name: None if value is None else value.to(device) for name, value in told.items()}
    if stage.takes_tokens:
        told["tokens"], told["token_mask"] = (x.to(device) for x in tokenizer.tokenize(batch.caption))
    if stage.takes_class:
        told["classes"] = classes_of(batch, stage.config.net.classes).to(device)
    if stage.config.inpaint:
        told["image"] = picture
    return stage.conditions(len(batch.image), low_res=low_res, **told)


def classes_of(batch: Batch, known: int) -> Tensor:
    """Classes int64 [N] of pictures, of which 0 to ``known`` - 1 are allowed; else ``ConfigError``."""
    if batch.classes is None:
        raise ConfigError("this stage takes classes, which composed icons have not; use data.kind: shards")
    for key, number in zip(batch.key, batch.classes.tolist(), strict=True):
        if not 0 <= number < known:
            raise ConfigError(f"this stage takes classes 0 to {known - 1}; the record of {key} has "
                              + ("none" if number < 0 else f"{number}"))
    return batch.classes


def shrink(picture: Tensor, size: int) -> Tensor:
    """[N,3,S,S] -> [N,3,size,size] by the mean of each cell (exact for whole factors)."""
    if picture.shape[-1] == size:
        return picture
    return F.interpolate(picture, size=(size, size), mode="area")


def _check_size(data: DataConfig, stage: Decoder) -> None:
    """Refuse pictures that the stage cannot learn from."""
    net, low_res, side = stage.config.net, stage.config.low_res, data.crop or data.size
    if low_res is None and side < stage.size:
        raise ConfigError(f"pictures of {side} pixels are smaller than the stage's {stage.size}")
    if low_res is not None and data.size != stage.size:
        raise ConfigError(f"data.size is {data.size}, but the upsampler makes {stage.size} pixels")
    if low_res is not None:
        grid_cell = net.pixel_unshuffle * 2 ** (len(net.channel_mult) - 1)
        multiple = math.lcm(grid_cell, stage.size // low_res.size)
        if side % multiple:
            raise ConfigError(f"data.crop {side} is no multiple of {multiple}, as this network needs")


def main(description: str, wants_low_res: bool, argv: list[str] | None = None) -> None:
    """The command of both programs."""
    recipe = program(PictureRecipe, description, argv)
    if recipe is None:
        return
    if bool(recipe.stage.low_res) != wants_low_res:
        raise ConfigError("stage.low_res belongs to upsamplers, and every upsampler has it")
    accelerator = make_accelerator(recipe.train)
    torch.manual_seed(recipe.train.seed)
    stage = Decoder(recipe.stage)
    begin(stage, recipe.start)
    task = PictureTask(recipe, stage.to(accelerator.device), accelerator)
    if task.tokenizer is not None and accelerator.is_main_process:
        task.tokenizer.save(Path(recipe.train.out) / TOKENIZER)
    train(stage, task, recipe.train, recipe, accelerator)


__all__ = ["PictureRecipe", "PictureTask", "classes_of", "conditions_of", "main", "shrink"]
