"""What a step of a stage's training takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from unclip.clip import build_clip
from unclip.config import Config
from unclip.resources.weightless import held_bytes, weightless

from ..tasks.recipes import ClassifierRecipe, PriorRecipe
from .blank import batch_of, clip_of, loss_of, stage_of
from .cost import Cost, image_flops, share, sizes_of, step_bytes, step_flops, text_flops


def stage_cost(recipe: Config, gpus: int, clips: Mapping[str, dict | str]) -> Cost:
    settings = recipe.train
    micro, bf16 = share(settings.batch_size, gpus, settings.accumulate), settings.precision != "fp32"
    with weightless():
        stage = stage_of(recipe)
    one, whole = batch_of(recipe, stage, 1), batch_of(recipe, stage, micro)
    forward, backward = step_flops(lambda: loss_of(stage, one))
    frozen, frozen_weights, notes = _frozen(recipe, stage, clips)
    sizes = sizes_of(stage, bf16)
    stored, again = (step_bytes(stage, lambda: loss_of(stage, whole), bf16, how) for how in (False, True))
    return Cost(
        name=settings.out,
        pictures=settings.pictures,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        micro_batch=micro,
        ema=sizes["weights"],
        forward=forward,
        backward=backward,
        frozen=frozen,
        frozen_weights=frozen_weights,
        notes=notes,
        checkpointing=settings.checkpointing,
        shard=settings.shard,
        can_shard=True,
        activations=stored - sizes["copies"],
        activations_checkpointed=again,
        **sizes,
    )


def _frozen(recipe: Config, stage: nn.Module, clips: Mapping[str, dict | str]) -> tuple[int, int, list[str]]:
    """FLOPs a picture of the frozen CLIP, its bytes, and what is to be said of it."""
    if isinstance(recipe, ClassifierRecipe) or recipe.clip is None or not stage.takes_clip:
        return 0, 0, []
    if recipe.clip in clips:
        with weightless():
            clip = build_clip(clips[recipe.clip])
    else:
        clip = clip_of(recipe.clip)
    if clip is None:
        return (
            0,
            0,
            [
                f"nothing here tells the shape of {recipe.clip}, so that its memory and FLOPs are not "
                "counted (clip=open_clip:NAME counts one like it)"
            ],
        )
    if isinstance(recipe, PriorRecipe):
        once = image_flops(clip, recipe.data.size) * recipe.embeddings
        note = f"embedding {recipe.embeddings:,} pictures at the start takes {once:.3g} FLOPs besides"
        return text_flops(clip), held_bytes(clip), [note]
    towers = {kind.tower for kind in stage.kinds}
    flops = image_flops(clip, recipe.data.crop or recipe.data.size) if "image" in towers else 0
    flops += text_flops(clip) if "text" in towers else 0
    return flops, held_bytes(clip), []
