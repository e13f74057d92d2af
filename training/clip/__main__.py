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

from accelerate import DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, parse_flag_from_env

from unclip.config import ConfigError

from ..programs import program, run
from ..run import folder
from ..run.settings import alone, joined
from .phase import Stopped
from .recipe import ClipRecipe
from .trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    recipe = program(ClipRecipe, __doc__, argv)
    if recipe is None:
        return 0
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ConfigError(
            "a CLIP is not trained in shards (FSDP): its batches are; launch without --use_fsdp, with "
            "checkpointing=true if memory is short"
        )
    out = Path(recipe.out)
    folder.check(out)
    # each phase leaves the other's tower alone
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = joined(
        recipe.precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(recipe.out, logging_dir=recipe.out),
        handlers=[unused],
    )
    with folder.held(out, accelerator):
        alone(accelerator, lambda: folder.write_recipe(out, recipe))
        try:
            metrics = Trainer(recipe, accelerator).train()
        except Stopped as stopped:
            accelerator.end_training()
            return stopped.args[0]
    if accelerator.is_main_process:
        print(json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=1))
    return 0


if __name__ == "__main__":
    run(main)
