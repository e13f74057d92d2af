"""Train a decoder: pictures from CLIP image embeddings, text, both, or nothing.

    python -m training.decoder configs/icons/decoder.yaml
    python -m training.decoder configs/icons/decoder.yaml train.batch_size=32 --dry-run
    accelerate launch -m training.decoder configs/icons/decoder.yaml

The same command again continues the run. ``out/decoder.safetensors`` is ready for use at any time.

With ``stage.autoencoder`` it learns latents and draws in them. ``autoencoder`` then names a decoder's
checkpoint that holds one, such as ``inference.convert`` makes of kandinsky-2.2; that part is not trained.
"""

from __future__ import annotations

from unclip.config import ConfigError
from unclip.stages import Decoder

from .programs import run
from .tasks.pictures import PictureTask
from .tasks.recipes import PictureRecipe
from .tasks.start import train_stage


def check(recipe: PictureRecipe) -> None:
    if recipe.stage.low_res is not None:
        raise ConfigError("stage.low_res belongs to upsamplers: python -m training.upsampler")


def main(argv: list[str] | None = None) -> int:
    return train_stage(PictureRecipe, Decoder, PictureTask, __doc__, argv, check)


if __name__ == "__main__":
    run(main)
