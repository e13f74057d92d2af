"""The recipe of a CLIP."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from unclip.config import Chance, Config, Count, CountOrNone, Factor, Together
from unclip.guides.noised_clip import NoisedClipStageConfig

from ..data.config import PictureData


class TeacherConfig(Config):
    """What is asked of the sentence encoder."""

    vocabulary: CountOrNone = 75_000  # everyday words and phrases, besides the captions
    noise: Factor = 0.3  # length of the noise on its unit vectors, for the images
    hidden: int = Field(0, ge=0, le=1 << 16)  # width of the map's bent part; 0 = a linear map


class ClipRecipe(Config):
    """Everything that `training.clip` needs."""

    out: str  # folder of the run; on a disk that all machines share
    model: dict | str | None = None  # an OpenCLIP model_cfg, or the name of one
    noised: NoisedClipStageConfig | None = None  # a CLIP of noised pictures in its place
    start: str | None = None  # weights: as `load_clip` takes them; of `noised`, a file of one
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pictures in [0, 1]; `start` has its own
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    data: PictureData
    augment: bool = True  # turn, shift and brighten the pictures a little
    distinct: Count | None = None  # pictures drawn once and kept in memory; None: new ones
    cache: str | None = None  # folder for what is computed once; None: that of the run
    images: Phase
    teacher: TeacherConfig | None = None  # needs `distinct`
    texts: Phase | None = None  # the text tower's own phase; needs a teacher
    same: Chance = 0.5  # share of a picture's probability for another of its name
    unseen: dict[str, list[str]] = {}  # word -> names that should be among its first five
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it
    checkpointing: bool = False  # less memory: the backward pass computes a third more
    seed: int = 0
    save_every: Count = 50_000  # samples

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


class Phase(Config):
    """One optimisation: AdamW, linear warm-up, half a cosine to zero. Counts are in samples."""

    samples: Count
    batch_size: Together = 256  # of a step, over all processes
    learning_rate: float = Field(1e-3, gt=0, le=1e6)
    warmup: CountOrNone = 10_000
    weight_decay: Factor = 0.1
    beta2: float = Field(0.98, gt=0, lt=1)
    eps: float = Field(1e-8, gt=0, le=1)
    max_skipped: Together = 10  # steps in a row with a loss that is no number, then it stops

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def rate(self, step: int) -> float:
        """The learning rate's share of its highest."""
        warm = min(1, (step + 1) * self.batch_size / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
