"""What a recipe says of its pictures and captions."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from unclip.config import Chance, Config, Side
from unclip.data.pictures import colour

from ..icons.scenes import ScenesConfig
from .pool import PoolConfig


class DataConfig(Config):
    """Shards of captioned pictures.

    ``icons``: RGBA icons held in memory and composed on the fly; ``shards``: any pictures, streamed, or
    with ``hold`` or ``only`` held in memory as they are. Of several captions one is taken by chance.
    """

    kind: str = "shards"  # one of ``source.KINDS``
    shards: list[str]  # paths, globs, brace ranges or URLs to learn from
    heldout: list[str] = []  # ... to validate on, never learnt from
    size: Side  # pictures are made this high and wide
    random_crop: float | None = Field(None, gt=0, le=1)  # squares from anywhere: the least side, as a share
    # of the shorter side; None = the largest, in the middle
    crop: Side | None = None  # train on random windows of this size
    background: str = "white"  # what is seen behind transparency, as CSS writes it
    workers: int = Field(0, ge=0, le=1024)  # processes that read and decode; 0 = the one that trains
    shuffle: int = Field(1_000, ge=0, le=1 << 24)  # samples in the shuffle buffer (streamed shards)
    embeddings: str | None = None  # folder of training.embed; a CLIP need not run then, but
    # a picture that is cut or turned keeps its embedding
    latents: bool = False  # learn from the latents that embeddings holds; pictures are not decoded then
    max_corrupt: Chance = 0.1  # share of unreadable samples above which a run ends
    hold: bool = False  # read the shards once and keep them; for a few thousand
    only: list[str] = []  # names (else captions) that are used; [] = all
    flip: Chance = 0.0  # training: chance to be mirrored, left to right
    rotate: Chance = 0.0  # training: chance to be turned by 90, 180 or 270 degrees
    scenes: ScenesConfig = ScenesConfig()  # how icons are composed
    pool: PoolConfig | None = None  # icons: scenes composed once and kept; None: always new

    @model_validator(mode="after")
    def _latents_are_of_whole_pictures(self) -> DataConfig:
        if self.latents and self.embeddings is None:
            raise ValueError(
                "latents are in the folder of data.embeddings, which training.embed --latents makes"
            )
        changed = [name for name in ("random_crop", "crop", "flip", "rotate") if getattr(self, name)]
        if self.latents and changed:
            raise ValueError(f"latents are of whole pictures as they are; leave out {' and '.join(changed)}")
        return self

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        colour(value)
        return value


def _of_pictures(data: DataConfig) -> DataConfig:
    if data.latents:
        raise ValueError("latents are for the recipe of a decoder that has stage.autoencoder")
    return data


PictureData = Annotated[DataConfig, AfterValidator(_of_pictures)]
"""Of stages that need the pictures themselves, or none of them."""
