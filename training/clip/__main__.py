"""Train a CLIP: an image tower and a text tower that meet in one space.

    python -m training.clip configs/icons/clip.yaml
    python -m training.clip configs/icons/clip.yaml images.samples=20000 --dry-run
    accelerate launch -m training.clip configs/clip.yaml model=null data.size=224 \\
        start=open_clip:ViT-B-32@laion2b_s34b_b79k

From nothing, or with ``start`` from any CLIP that ``load_clip`` takes. Without a teacher both towers learn
together from captions (Radford et al. 2021, arXiv:2103.00020), against the captions of all processes. With
one, the image tower first learns to find the teacher's frozen caption vectors, seen through a smooth map;
then the text tower learns to say, of any text, where that map puts it. So words that no caption holds land
beside those that mean the same. With ``noised``, pictures are noised and the image tower is told how much
(Nichol et al. 2021, section 2.4): such a CLIP guides a decoder. The same command again continues the run.
"""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration

from unclip.config import to_yaml
from unclip.files import written_aside

from ..programs import program, run, wants_bf16
from .phase import Stopped
from .recipe import ClipRecipe
from .trainer import Trainer


def main(argv: list[str] | None = None) -> None:
    recipe = program(ClipRecipe, __doc__, argv)
    if recipe is None:
        return
    # each phase leaves the other's tower alone
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if wants_bf16(recipe.precision) else "no",
        log_with="tensorboard",
        project_config=ProjectConfiguration(recipe.out, logging_dir=recipe.out),
        kwargs_handlers=[unused],
    )
    if accelerator.is_main_process:
        with written_aside(Path(recipe.out) / "recipe.yaml") as aside:
            aside.write_text(to_yaml(recipe), encoding="utf-8")
    try:
        metrics = Trainer(recipe, accelerator).train()
    except Stopped as stopped:
        accelerator.end_training()
        accelerator.print(stopped)
        return
    if accelerator.is_main_process:
        print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=1))


if __name__ == "__main__":
    run(main)
