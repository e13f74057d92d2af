"""What the phases of `training.clip` cost: see `training.cost`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unclip.clip import Clip, build_clip
from unclip.config import ConfigError
from unclip.guides.noised_clip import NoisedClip
from unclip.resources.weightless import weightless

from ..clip.losses import ClipContrast, Contrast, Distil, Head, NoisedContrast
from ..clip.recipe import ClipRecipe, Phase
from .blank import clip_of
from .cost import Cost, share, sizes_of, step_bytes, step_flops

TEACHER = 384  # width of the teacher's vectors


def clip_costs(recipe: ClipRecipe, gpus: int) -> list[Cost]:
    """Of the pictures' phase, and of the texts' if there is one. ``ConfigError`` for a start whose shape
    nothing here tells.
    """
    with weightless():
        clip = blank_of(recipe)
        costs = [_cost("images", recipe.images, recipe, gpus, contrast_of(recipe, clip))]
        if recipe.texts is not None:
            costs.append(_cost("texts", recipe.texts, recipe, gpus, _distil(clip)))
    return costs


def blank_of(recipe: ClipRecipe) -> Clip | NoisedClip:
    """What a recipe trains, on torch's default device, which must be meta; no weights are read."""
    if recipe.noised is not None:
        return NoisedClip(recipe.noised)
    clip = build_clip(recipe.model) if recipe.start is None else clip_of(recipe.start)
    if clip is None:
        raise ConfigError(
            f"nothing here tells the shape of {recipe.start}; plan one like it: model=NAME start=null"
        )
    return clip.requires_grad_(True)


Losses = Callable[[int, int], Tensor]  # (samples of one GPU, GPUs) -> the loss


def contrast_of(recipe: ClipRecipe, clip: Clip | NoisedClip) -> tuple[Contrast, Losses]:
    """The module of the pictures' phase, and its loss; on torch's default device, as ``clip`` is."""
    if isinstance(clip, NoisedClip):
        net = clip.config.net
        module, side, length = NoisedContrast(clip, recipe.same), net.image_size, net.length
    else:
        head = None
        if recipe.teacher is not None:
            head = Head(torch.zeros(1, TEACHER), _width(clip), recipe.teacher.hidden)
        module, side, length = ClipContrast(clip, head, recipe.same), recipe.data.size, clip.context_length

    def loss(n: int, gpus: int) -> Tensor:
        module.gather = lambda rows: rows.repeat(gpus, 1)
        images, one = (torch.zeros(n, 3, side, side),), torch.ones(n, dtype=torch.int64)
        ids = torch.zeros(n, length, dtype=torch.int64)
        if isinstance(clip, NoisedClip):
            images, texts = (*images, one), (ids, one)
        else:
            texts = (ids, _mask(n, length)) if module.head is None else (torch.zeros(n, TEACHER),)
        return module(images, texts, torch.zeros(n, 2, dtype=torch.int64))

    return module, loss


def _distil(clip: Clip) -> tuple[Distil, Losses]:
    """The module of the texts' phase, and its loss, for texts of the full length."""
    module, length, width = Distil(clip), clip.context_length, _width(clip)

    def loss(n: int, gpus: int) -> Tensor:
        ids = torch.zeros(n, length, dtype=torch.int64)
        return module(ids, _mask(n, length), torch.zeros(n, width))

    return module, loss


def _width(clip: Clip) -> int:
    """Of the common space."""
    ids, mask = torch.zeros(1, clip.context_length, dtype=torch.int64), _mask(1, clip.context_length)
    return clip.towers.text(ids, mask)[0].shape[1]


def _mask(n: int, length: int) -> Tensor:
    """Whole texts; not on meta, since their length is asked for."""
    return torch.ones(n, length, dtype=torch.bool, device="cpu")


def _cost(name: str, phase: Phase, recipe: ClipRecipe, gpus: int, work: tuple[nn.Module, Losses]) -> Cost:
    module, loss = work
    micro, bf16 = share(phase.batch_size, gpus), recipe.precision != "fp32"
    forward, backward = step_flops(lambda: loss(1, 1))
    used = [part for part in module.children() if isinstance(part, nn.Module)]
    sizes = sizes_of(nn.ModuleList(used), bf16)
    stored, again = (step_bytes(module, lambda: loss(micro, gpus), bf16, how) for how in (False, True))
    return Cost(
        name=f"{recipe.out} ({name})",
        pictures=phase.samples,
        batch_size=phase.batch_size,
        accumulate=1,
        micro_batch=micro,
        ema=0,
        forward=forward,
        backward=backward,
        frozen=0,
        frozen_weights=0,
        activations=stored - sizes["copies"],
        activations_checkpointed=again,
        checkpointing=recipe.checkpointing,
        can_shard=False,
        **sizes,
    )
