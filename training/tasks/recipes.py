"""The recipes of all stages but CLIP."""

from __future__ import annotations

from unclip.config import Config, Count
from unclip.guides.classifier import ClassifierStageConfig
from unclip.stages import AnyPriorConfig, DecoderStageConfig

from ..data.config import DataConfig, PictureData
from ..run.settings import Training


class ClassifierRecipe(Config):
    """A classifier: its data, itself, its training."""

    data: PictureData
    stage: ClassifierStageConfig
    train: Training


TOKENIZER = "tokenizer"  # folder of a run, beside the checkpoint


class PictureRecipe(Config):
    """A decoder or an upsampler: its data, its frozen CLIP (None if it needs none), its training."""

    clip: str | None = None  # as ``unclip.clip.load_clip`` takes it
    tokenizer: str | None = None  # of a stage with a text transformer: ``glide``, or a folder
    data: DataConfig
    start: str | None = None  # a checkpoint whose weights a new run begins with; None = chance
    autoencoder: str | None = None  # of a stage of latents: a decoder's checkpoint, whose own it takes
    stage: DecoderStageConfig
    train: Training


class PriorRecipe(Config):
    """The prior: its data, its frozen CLIP, its training."""

    clip: str | None = None  # as ``unclip.clip.load_clip`` takes it; with data.embeddings
    # it need not be named
    data: PictureData
    embeddings: Count = 50_000  # pictures embedded at the start, unless data.embeddings or
    # data.pool brings them
    start: str | None = None  # a checkpoint whose weights a new run begins with; None = chance
    stage: AnyPriorConfig
    train: Training
