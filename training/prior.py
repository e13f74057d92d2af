"""Train a prior: CLIP image embeddings from text.

    python -m training.prior configs/icons/prior.yaml
    python -m training.prior configs/icons/prior.yaml train.batch_size=256 --dry-run
    python -m training.prior configs/icons/prior-ar.yaml
    accelerate launch -m training.prior configs/icons/prior.yaml

Pictures are embedded once, at the start (``embeddings`` of them, shared out among the processes); the
prior then learns from these without pictures. With ``data.embeddings``, a folder of ``training.embed``, it
learns from that, and needs neither the pictures nor the CLIP. The same command again continues the run.
``out/prior.safetensors`` is ready for use at any time; or ``out/prior-ar.safetensors``, the autoregressive
prior, which a recipe trains whose stage has the kind prior-ar.

With ``stage.objective=eclipse`` it makes an embedding of noise in one step (Patel et al. 2024), and has no
guidance: ``stage.net.timed=false stage.drop_text=0 stage.sampling.steps=1 stage.sampling.guidance_scale=1``.
Its contrast is among the samples that a process has in one step.
"""

from __future__ import annotations

from accelerate import Accelerator

from unclip.stages import STAGES, AnyPrior

from .programs import run
from .tasks.prior import PriorTask
from .tasks.prior_rows import RowsTask
from .tasks.recipes import PriorRecipe
from .tasks.start import train_stage


def task_of(recipe: PriorRecipe, stage: AnyPrior, accelerator: Accelerator) -> PriorTask | RowsTask:
    """From pictures, or from embeddings that were made before."""
    return (PriorTask if recipe.data.embeddings is None else RowsTask)(recipe, stage, accelerator)


def main(argv: list[str] | None = None) -> int:
    return train_stage(PriorRecipe, lambda config: STAGES[config.kind](config), task_of, __doc__, argv)


if __name__ == "__main__":
    run(main)
