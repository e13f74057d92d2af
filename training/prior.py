"""Train the diffusion prior: CLIP image embeddings from text.

    python -m training.prior configs/icons/prior.yaml
    python -m training.prior configs/icons/prior.yaml train.batch_size=256 --dry-run
    accelerate launch -m training.prior configs/icons/prior.yaml

Pictures are embedded once, at the start (``embeddings`` of them, shared out among the processes); the
prior then learns from these without pictures. With ``data.embeddings``, a folder of ``training.embed``, it
learns from that, and needs neither the pictures nor the CLIP. The same command again continues the run.
``out/prior.safetensors`` is ready for use at any time.
"""

from __future__ import annotations

import torch

from unclip.stages import Prior

from .programs import program, run
from .run.loop import train
from .run.settings import make_accelerator
from .tasks.prior import PriorTask
from .tasks.prior_rows import RowsTask
from .tasks.recipes import PriorRecipe
from .tasks.start import begin


def main(argv: list[str] | None = None) -> None:
    recipe = program(PriorRecipe, __doc__, argv)
    if recipe is None:
        return
    accelerator = make_accelerator(recipe.train)
    torch.manual_seed(recipe.train.seed)
    stage = Prior(recipe.stage)
    begin(stage, recipe.start)
    stage.to(accelerator.device)
    task = PriorTask if recipe.data.embeddings is None else RowsTask
    train(stage, task(recipe, stage, accelerator), recipe.train, recipe, accelerator)


if __name__ == "__main__":
    run(main)
