"""Train an upsampler: a picture several times larger from a small, slightly corrupted one.

    python -m training.upsampler configs/icons/upsampler-256.yaml
    python -m training.upsampler configs/icons/upsampler-256.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.upsampler configs/icons/upsampler-256.yaml

The same command again continues the run. ``out/decoder.safetensors`` is ready for use at any time.
"""

from __future__ import annotations

from unclip.config import ConfigError
from unclip.stages import Decoder

from .programs import run
from .tasks.pictures import PictureTask
from .tasks.recipes import PictureRecipe
from .tasks.start import train_stage


def check(recipe: PictureRecipe) -> None:
    if recipe.stage.low_res is None:
        raise ConfigError("stage.low_res belongs to upsamplers; without one: python -m training.decoder")


def main(argv: list[str] | None = None) -> int:
    return train_stage(PictureRecipe, Decoder, PictureTask, __doc__, argv, check)


if __name__ == "__main__":
    run(main)
