"""GLIDE: its decoder and upsampler with their text transformers, its tokenizer and noised CLIP.

Nichol et al. 2021; the public models are the filtered ones of 300 million parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoint import CheckpointError, load_strictly
from ...guides.noised_clip import NoisedClip, NoisedClipStageConfig
from ...pipeline.pipeline import Pipeline
from ...stages.tokenizer import GlideTokenizer
from ..catalogue import MODELS, PublicModel
from ..family import StageConfigs
from ..tensors import read
from . import names
from .configs import noised_clip_config
from .stages import decoder, decoder_config

__all__ = ["configs", "decoder", "decoder_config", "noised_clip", "pipeline"]


def configs(model: PublicModel, tensors: Mapping[str, Mapping[str, Tensor]] | None = None) -> StageConfigs:
    """Our stage configurations of a model: "decoder", "upsamplers" (one), and "guide".

    tensors: of its files, by role, whose shapes count more than the model's arguments.
    """
    tensors, args, sampling = tensors or {}, model.args, model.sampling
    base = decoder_config(args["base"], sampling["base"], None, tensors.get("base"))
    upsampler = decoder_config(
        args["upsample"], sampling["upsample"], base.net.image_size, tensors.get("upsample")
    )
    guide = NoisedClipStageConfig(
        net=noised_clip_config(args["clip_image"], args["clip_text"]), schedule=base.process.schedule
    )
    return {"decoder": base, "upsamplers": [upsampler], "guide": guide}


def pipeline(
    files: Mapping[str, str | Path], inpaint: bool = False, model: PublicModel | None = None
) -> Pipeline:
    """GLIDE from its files, by role: base, upsample, encoder, vocab; and, for CLIP guidance, clip_image and
    clip_text.

    inpaint: the files are those of the inpainting models.
    model:   whose arguments and sampling settings they have; None = the published one's.

    Raises CheckpointError for a file that is damaged or does not fit, tensor by tensor.
    """
    model = model or MODELS["glide-inpaint" if inpaint else "glide"]
    stages = {role: read(files[role]) for role in ("base", "upsample")}
    planned = configs(model, stages)
    text = planned["decoder"].text
    if text is None:
        raise CheckpointError(f"{files['base']} holds no text transformer, which GLIDE's decoder has")
    tokenizer = GlideTokenizer.from_files(files["encoder"], files["vocab"], text.length)
    guide = None
    if "clip_image" in files and "clip_text" in files:
        guide = noised_clip(
            read(files["clip_image"]),
            read(files["clip_text"]),
            planned["guide"],
            f"{files['clip_image']} with {files['clip_text']}",
        )
    return Pipeline(
        decoder(stages.pop("base"), planned["decoder"], source=str(files["base"])),
        upsamplers=[decoder(stages.pop("upsample"), planned["upsamplers"][0], source=str(files["upsample"]))],
        tokenizer=tokenizer,
        guide=guide,
        name=model.name,
        description=model.about,
    )


def noised_clip(
    image: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    config: NoisedClipStageConfig,
    source: str = "the files",
) -> NoisedClip:
    """The noised CLIP with the tensors of its two files; eval mode, no gradients."""
    towers = {"network.image": names.tower(image, source), "network.text": names.tower(text, source)}
    clip = NoisedClip.blank(config)
    tensors = {
        name: value
        for place, (ours, _) in towers.items()
        for name, value in names.prefixed(place, ours).items()
    }
    unused = [name for _, others in towers.values() for name in others]
    load_strictly(clip, tensors, source, unused, torch.float32)
    return clip
