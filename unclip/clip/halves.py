"""A CLIP whose two halves lie in two folders of transformers, as Kandinsky's do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import CheckpointError
from ..resources.weightless import weightless
from .description import brief
from .encoders import Clip
from .public import HALVES, all_finite, check_complete, check_files, described, quiet, statistics
from .towers import TransformersTowers


def load_halves(text: Path, image: Path, tokenizer: Path, processor: Path, source: str) -> Clip:
    """A CLIPTextModelWithProjection and a CLIPVisionModelWithProjection that were trained as one.

    Of what multiplies their cosines nothing is known: it is 100, as all of OpenAI's and OpenCLIP's are.

    Raises CheckpointError for what is damaged, holds another model, or does not fit together.
    """
    import transformers

    ours: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    words, pictures = (
        _network(folder, kind, ours)
        for folder, kind in ((text, "clip_text_model"), (image, "clip_vision_model"))
    )
    width, other = words.config.projection_dim, pictures.config.projection_dim
    if width != other:
        raise CheckpointError(f"{text} makes embeddings of {width} numbers, {image} of {other}")
    with weightless():
        whole = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=words.config.to_dict(),
                vision_config=pictures.config.to_dict(),
                projection_dim=width,
            )
        )
    whole.text_model, whole.text_projection = words.text_model, words.text_projection
    whole.vision_model, whole.visual_projection = pictures.vision_model, pictures.visual_projection
    whole.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))
    try:
        pieces = transformers.AutoTokenizer.from_pretrained(tokenizer, **ours)
        mean, std = statistics(processor, ours)
    except Exception as error:  # a damaged file can lead to any
        raise CheckpointError(f"{tokenizer} or {processor} cannot be read: {brief(error)}") from None
    return all_finite(Clip(TransformersTowers(whole.eval(), pieces), mean, std, source, exact=True))


def _network(folder: Path, kind: str, ours: dict[str, Any]) -> Any:  # of transformers
    import transformers

    check_files(folder)
    try:
        config = described(folder, ours, kind)
        with quiet():
            network, info = getattr(transformers, HALVES[kind]).from_pretrained(
                folder, config=config, output_loading_info=True, dtype=torch.float32, **ours
            )
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can lead to any
        raise CheckpointError(f"{folder} cannot be read as half of a CLIP: {brief(error)}") from None
    check_complete(info, str(folder))
    return network
